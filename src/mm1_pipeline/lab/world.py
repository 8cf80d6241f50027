"""The synthetic world of the lab, written as raw data that the ordinary readers take.

    captions_alt/           Parquet: images with alt texts that drop and mistake attributes
    captions_dense/         Parquet: images with dense, right captions (VeCap's place)
    documents/              Parquet, OBELICS' layout: several images, each with an answer to one
                            hidden question that only the other examples tell; some with captions
    text/                   jsonl.zst: sums, copying, patterns whose rule only examples tell
    eval_captions/          COCO captions
    eval_<attribute>/       VQAv2 questions that all ask `what?`: the shots tell what is asked
    eval_text/              jsonl: text whose last word follows from the rest
    conversations/          LLaVA's JSON: questions that name what they ask, with short answers,
                            of one image or one each
    eval_questions/         VQAv2 questions of that kind, about what is large
    eval_reading/           VQAv2 questions of that kind, about the small letters
    world.json              what was made

Everything is synthetic: results say what a method does to a small world, not to the web. From
here on the world goes the way of real data: ingest, shard, pretrain, evaluate.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pydantic import TypeAdapter

from mm1_pipeline.config.lab import Attribute, WorldConfig
from mm1_pipeline.config.validation import build_parameters
from mm1_pipeline.ground.files import read_json, whole_folder
from mm1_pipeline.lab import scenes
from mm1_pipeline.lab.scenes import Scene

logger = logging.getLogger(__name__)

QUESTION = "what?"
"""Asked of every image; says nothing, so that only the examples tell what is meant."""

ASKED = {
    Attribute.COLOUR: "what colour is it?",
    Attribute.SHAPE: "what shape is it?",
    Attribute.POSITION: "where is it?",
    Attribute.BACKGROUND: "what is behind it?",
    Attribute.WORD: "what word is written?",
    Attribute.NUMBER: "what number is written?",
}
"""Questions that fine-tuning answers: they say what is asked."""

QUESTION_SETS = {
    "eval_questions": (
        Attribute.COLOUR,
        Attribute.SHAPE,
        Attribute.POSITION,
        Attribute.BACKGROUND,
    ),
    "eval_reading": (Attribute.WORD, Attribute.NUMBER),
}
"""Evaluation sets of such questions; each item asks for the next attribute."""

WORLD_FILE = "world.json"
_ROWS_PER_FILE = 2_000
_NUM_ANSWERS = 10
_LINES_PER_TEXT = 8
_TURNS = 3


def prepare_world(parameters: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Draws the world, unless the very same lies there already.

    A world that was interrupted, or drawn with other parameters, is drawn anew beside the old
    one, which it then replaces.

    Args:
        parameters: Of `WorldConfig`.
        folder: Where the world belongs.

    Returns:
        Entries of each set.

    Raises:
        ParameterError: A parameter does not exist or has a value that is not allowed.
        ValueError: The folder holds something else than a world.
    """
    config = build_parameters(WorldConfig, "world", parameters)
    found = _read_world(folder)
    if found is not None and found["config"] == _config_json(config):
        return found["counts"]
    if found is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: found files but no {WORLD_FILE}; expected a world or an empty folder. "
            "Remove it, or choose another."
        )
    with whole_folder(folder) as fresh:
        return write_world(config, fresh)


def _read_world(folder: Path) -> dict[str, Any] | None:
    path = folder / WORLD_FILE
    return read_json(path) if path.is_file() else None


def world_of(path: Path) -> dict[str, Any] | None:
    """Which set of which world a path is.

    Args:
        path: A folder or file of raw data.

    Returns:
        The set's name and the parameters of the world that it was drawn with; None for data that
        is no world's.
    """
    for folder in path.parents:
        world = _read_world(folder)
        if world is not None:
            return {"set": path.relative_to(folder).as_posix(), "world": world["config"]}
    return None


def _config_json(config: WorldConfig) -> dict[str, Any]:
    return TypeAdapter(WorldConfig).dump_python(config, mode="json")


def evaluation_source(attribute: Attribute) -> str:
    """The folder, and ingested source, of the items that ask for an attribute."""
    return f"eval_{attribute.value}"


def write_world(config: WorldConfig, folder: Path) -> dict[str, int]:
    """Draws the world; the same parameters give the same files.

    A scene depends on the seed, its set and its number alone: a larger world holds the smaller.

    Args:
        config: Sizes and noise.
        folder: Gets the files listed above; must not hold a world yet.

    Returns:
        Entries of each set.

    Raises:
        ValueError: The folder already holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: found files, expected an empty or no folder. Remove it, or choose another."
        )
    makers: dict[str, Callable[[WorldConfig, Path], int]] = {
        "captions_alt": _write_alt_texts,
        "captions_dense": _write_dense_captions,
        "documents": _write_documents,
        "text": _write_texts,
        "eval_captions": _write_caption_items,
        **{
            evaluation_source(name): _question_writer((name,), {name: QUESTION})
            for name in Attribute
        },
        "eval_text": _write_text_items,
        "conversations": _write_conversations,
        **{name: _question_writer(asked, ASKED) for name, asked in QUESTION_SETS.items()},
    }
    counts = {}
    for name, make in makers.items():
        begun = time.monotonic()
        (folder / name).mkdir(parents=True)
        counts[name] = make(config, folder / name)
        rate = counts[name] / max(time.monotonic() - begun, 1e-9)
        logger.info("%s: %d entries (%.0f/s)", name, counts[name], rate)
    content = {
        "note": "synthetic, drawn by mm1_pipeline.lab.world",
        "config": _config_json(config),
        "counts": counts,
    }
    (folder / WORLD_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return counts


def _generator(config: WorldConfig, name: str, number: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, zlib.crc32(name.encode()), number])


def _write_alt_texts(config: WorldConfig, folder: Path) -> int:
    values = scenes.first_values(config.num_values)

    def text(scene: Scene, rng: np.random.Generator) -> str:
        return scenes.alt_text(scene, rng, values, config.drop, config.wrong)

    return _write_captions(config, folder, text)


def _write_dense_captions(config: WorldConfig, folder: Path) -> int:
    return _write_captions(config, folder, lambda scene, _rng: scenes.dense_caption(scene))


def _write_captions(
    config: WorldConfig, folder: Path, text: Callable[[Scene, np.random.Generator], str]
) -> int:
    values = scenes.first_values(config.num_values)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(config.num_captions):
            rng = _generator(config, folder.name, number)
            scene = scenes.draw_scene(rng, values)
            yield {"image": scenes.render(scene, config.canvas), "caption": text(scene, rng)}

    return _write_parquet(rows(), {"image": pa.binary(), "caption": pa.string()}, folder)


def _write_documents(config: WorldConfig, folder: Path) -> int:
    values = scenes.first_values(config.num_values)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(config.num_documents):
            rng = _generator(config, folder.name, number)
            num_examples = int(rng.integers(2, config.max_examples + 1))
            answer = _captions if rng.random() < config.caption_documents else _hidden_task(rng)
            images: list[bytes | None] = []
            texts: list[str | None] = []
            for _ in range(num_examples):
                scene = scenes.draw_scene(rng, values)
                images += [scenes.render(scene, config.canvas), None]
                texts += [None, answer(scene)]
            yield {"images": images, "texts": texts}

    columns = {"images": pa.list_(pa.binary()), "texts": pa.list_(pa.string())}
    return _write_parquet(rows(), columns, folder)


def _captions(scene: Scene) -> str:
    return scenes.caption(scene)


def _hidden_task(rng: np.random.Generator) -> Callable[[Scene], str]:
    attribute = list(Attribute)[int(rng.integers(len(Attribute)))]
    return lambda scene: f"{QUESTION} {scene[attribute]}"


def _write_texts(config: WorldConfig, folder: Path) -> int:
    lines = []
    for number in range(config.num_texts):
        text = "\n".join(_text_lines(_generator(config, folder.name, number)))
        lines.append(json.dumps({"text": text}) + "\n")
    packed = zstandard.ZstdCompressor(level=9).compress("".join(lines).encode("utf-8"))
    (folder / "00000.jsonl.zst").write_bytes(packed)
    return len(lines)


def _write_text_items(config: WorldConfig, folder: Path) -> int:
    lines = []
    for number in range(config.num_items):
        text = "\n".join(_text_lines(_generator(config, folder.name, number)))
        lines.append(json.dumps({"text": text}) + "\n")
    (folder / "last_words.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _text_lines(rng: np.random.Generator) -> list[str]:
    """Lines of one skill; the last word of each follows from the lines before it."""
    skill = int(rng.integers(3))

    def line() -> str:
        match skill:
            case 0:
                first, second = rng.integers(0, 10, 2).tolist()
                return f"{first} + {second} = {first + second}"
            case 1:
                words = rng.choice(scenes.WORDS, 3).tolist()
                return f"{' '.join(words)} : {' '.join(words)}"
            case _:
                return rule()

    place = int(rng.integers(3))

    def rule() -> str:
        """Which of three words the answer is, only the lines before tell."""
        words = rng.choice(scenes.WORDS, 3, replace=False).tolist()
        return f"{' '.join(words)} -> {words[place]}"

    return [line() for _ in range(_LINES_PER_TEXT)]


def _write_caption_items(config: WorldConfig, folder: Path) -> int:
    images, annotations = [], []
    for number, scene in itertools.islice(_scenes(config, folder), config.num_items):
        name = f"{number:06d}.png"
        size = {"width": config.canvas, "height": config.canvas}
        images.append({"id": number, "file_name": name, **size})
        for text in (scenes.caption(scene), scenes.dense_caption(scene)):
            annotations.append({"id": len(annotations), "image_id": number, "caption": text})
    _write_json(folder / "captions_val.json", {"images": images, "annotations": annotations})
    return len(images)


def _question_writer(
    attributes: Sequence[Attribute], wording: Mapping[Attribute, str]
) -> Callable[[WorldConfig, Path], int]:
    """Writes VQAv2's files; each item asks for the next of some attributes."""

    def write(config: WorldConfig, folder: Path) -> int:
        questions, annotations = [], []
        for number, scene in itertools.islice(_scenes(config, folder), config.num_items):
            attribute = attributes[number % len(attributes)]
            ids = {"question_id": number, "image_id": number}
            answer = scene[attribute]
            answers = [{"answer_id": place + 1, "answer": answer} for place in range(_NUM_ANSWERS)]
            questions.append({**ids, "question": wording[attribute]})
            annotations.append({**ids, "multiple_choice_answer": answer, "answers": answers})
        _write_json(folder / "questions.json", {"questions": questions})
        _write_json(folder / "annotations.json", {"annotations": annotations})
        return len(questions)

    return write


def _write_conversations(config: WorldConfig, folder: Path) -> int:
    """Writes LLaVA's JSON: attributes asked in turns, of one image or each of its own."""
    conversations, scenes_drawn = [], _scenes(config, folder)
    for number in range(config.num_conversations):
        rng = _generator(config, f"{folder.name}/turns", number)
        asked = rng.choice(list(Attribute), _TURNS, replace=False).tolist()
        has_several = rng.random() < config.several_images
        shown = [next(scenes_drawn) for _ in range(_TURNS if has_several else 1)]
        turns = []
        for place, attribute in enumerate(map(Attribute, asked)):
            tag = "<image>\n" if place < len(shown) else ""
            _, scene = shown[min(place, len(shown) - 1)]
            turns.append({"from": "human", "value": f"{tag}{ASKED[attribute]}"})
            turns.append({"from": "gpt", "value": scene[attribute]})
        names = [f"{scene_number:06d}.png" for scene_number, _ in shown]
        image = names if has_several else names[0]
        conversations.append({"id": f"{number:06d}", "image": image, "conversations": turns})
    _write_json(folder / "conversations.json", conversations)
    return len(conversations)


def _scenes(config: WorldConfig, folder: Path) -> Iterator[tuple[int, Scene]]:
    """Scenes of a set, numbered, without end; their images are written on the way."""
    values = scenes.first_values(config.num_values)
    (folder / "images").mkdir()
    for number in itertools.count():
        scene = scenes.draw_scene(_generator(config, folder.name, number), values)
        image = scenes.render(scene, config.canvas)
        (folder / "images" / f"{number:06d}.png").write_bytes(image)
        yield number, scene


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_parquet(
    rows: Iterator[dict[str, Any]], columns: Mapping[str, pa.DataType], folder: Path
) -> int:
    """Writes rows into files of at most 2,000; gives their number."""
    schema = pa.schema(list(columns.items()))
    count, batch = 0, list[dict[str, Any]]()

    def write() -> None:
        path = folder / f"{(count - 1) // _ROWS_PER_FILE:05d}.parquet"
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(batch, schema), buffer)
        path.write_bytes(buffer.getvalue())
        batch.clear()

    for row in rows:
        batch.append(row)
        count += 1
        if len(batch) == _ROWS_PER_FILE:
            write()
    if batch:
        write()
    return count
