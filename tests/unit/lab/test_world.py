"""The synthetic world: what it shows, what its texts say, and that the ordinary readers take it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import IngestConfig, RecordKind
from mm1_pipeline.config.lab import WorldConfig
from mm1_pipeline.config.validation import ParameterError, check_parameters
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import SegmentType, read_records
from mm1_pipeline.lab import scenes
from mm1_pipeline.lab.scenes import Attribute, Scene
from mm1_pipeline.lab.world import ASKED, QUESTION, QUESTION_SETS, prepare_world, write_world
from typed_values import not_none

CONFIG = WorldConfig(
    num_captions=60, num_documents=40, num_texts=30, num_items=12, num_conversations=20
)
STILL = (0.0, 0.0, 0.0, 0.0)


def scene(**values: str) -> Scene:
    whole = {name: found[0] for name, found in scenes.VALUES.items()}
    return Scene(whole | {Attribute(name): value for name, value in values.items()}, STILL)


def pixels(shown: Scene, canvas: int = 96) -> np.ndarray:
    image = Image.open(io.BytesIO(scenes.render(shown, canvas)))
    assert image.size == (canvas, canvas)
    return np.asarray(image.convert("RGB")).astype(int)


def digests(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "world"
    return folder, write_world(CONFIG, folder)


@pytest.fixture(scope="module")
def records(world, tmp_path_factory):
    folder, _ = world
    evaluation = {
        f"eval_{name}": dict(
            kind="conversation", format="vqa_v2", path=f"{folder}/eval_{name}",
            split="evaluation",
        )
        for name in [*(attribute.value for attribute in Attribute), "questions", "reading"]
    }  # fmt: skip
    sources = {
        "alt": dict(kind="caption", format="image_parquet", path=f"{folder}/captions_alt"),
        "dense": dict(kind="caption", format="image_parquet", path=f"{folder}/captions_dense"),
        "documents": dict(
            kind="interleaved", format="interleaved_parquet", path=f"{folder}/documents",
            images={"min_side": 48},
        ),
        "text": dict(kind="text", format="jsonl", path=f"{folder}/text", text_column="text"),
        "conversations": dict(
            kind="conversation", format="llava", path=f"{folder}/conversations",
        ),
        "eval_captions": dict(
            kind="caption", format="coco_captions", path=f"{folder}/eval_captions",
            split="evaluation",
        ),
        **evaluation,
    }  # fmt: skip
    out = tmp_path_factory.mktemp("records")
    plain = {"text": {"defaults": False}, "captions": {"defaults": False}}
    rules = {  # as conf/lab: the world repeats itself by design
        "deduplication": {"near": None, "perceptual": False, "max_caption_occurrences": None},
        "decontamination": {"images": False, "texts": False},
    }
    sources = {name: {**plain, **source} for name, source in sources.items()}
    config = TypeAdapter(IngestConfig).validate_python({"sources": sources, **rules})
    return out, ingest(config, out)


class TestScenes:
    @pytest.mark.parametrize("attribute", list(Attribute))
    def test_every_value_looks_different(self, attribute):
        seen = [pixels(scene(**{attribute: value})) for value in scenes.VALUES[attribute]]
        for number, one in enumerate(seen):
            for other in seen[:number]:
                assert np.abs(one - other).max() > 60

    def test_a_shape_is_where_its_position_says(self):
        for position, cell in scenes.POSITIONS.items():
            grey = pixels(scene(position=position, background="white"))[:80]
            rows, columns = np.nonzero(np.abs(grey - 250).max(axis=-1) > 60)
            assert cell == (int(3 * rows.mean() / 80), int(3 * columns.mean() / 96))

    def test_shapes_have_sixteen_pixels_for_an_encoder_of_sixty_four(self):
        for shape in scenes.SHAPES:
            for size in (-1.0, 1.0):
                shown = dataclasses.replace(scene(shape=shape), jitter=(0, 0, size, 0))
                inside = np.abs(pixels(shown, 64)[:53] - 250).max(axis=-1) > 60
                assert np.nonzero(inside.any(axis=0))[0].size >= 12  # a triangle is narrower
                assert np.nonzero(inside.any(axis=1))[0].size >= 10

    def test_words_are_lost_at_low_resolution(self):
        """What two words differ by, after an encoder's resizing."""

        def contrast(size: int) -> float:
            images = []
            for word in ("map", "cup"):
                image = Image.open(io.BytesIO(scenes.render(scene(word=word), 96)))
                images.append(np.asarray(image.resize((size, size)), dtype=float))
            return float(np.abs(images[0] - images[1]).sum(axis=-1).max())

        assert contrast(96) > 1.5 * contrast(32)

    def test_no_shape_is_cut_off(self):
        for jitter in ((1, 1, 1, 0), (-1, -1, 1, 0)):
            sizes = []
            for position in scenes.POSITIONS:
                shown = Scene(scene(position=position, shape="square").values, jitter)
                sizes.append(np.sum(np.abs(pixels(shown)[:82] - 250).max(axis=-1) > 60))
            assert max(sizes) - min(sizes) < 0.08 * max(sizes)  # measured 0.065: rounding

    def test_descriptions(self):
        shown = scene(colour="orange", position="middle", word="key", number="7")
        assert scenes.caption(shown) == "an orange circle in the middle on white with key 7"
        assert scenes.describe({}) == "image"
        assert scenes.describe({Attribute.COLOUR: "red"}) == "a red shape"
        assert scenes.describe({Attribute.NUMBER: "7"}) == "7"
        dense = scenes.dense_caption(shown)
        assert all(value in dense for value in shown.values.values())

    def test_alt_texts_drop_and_mistake_as_often_as_they_should(self):
        rng = np.random.default_rng(0)
        shown = scene()
        counts = Counter()
        for _ in range(2_000):
            text = scenes.alt_text(shown, rng, scenes.VALUES, 0.3, 0.15).split()
            word = [found for found in scenes.WORDS if found in text]
            counts["none" if not word else "right" if word == ["cat"] else "wrong"] += 1
        shares = {name: count / 2_000 for name, count in counts.items()}
        assert shares == pytest.approx({"none": 0.3, "right": 0.55, "wrong": 0.15}, abs=0.03)
        assert scenes.alt_text(shown, rng, scenes.VALUES, 0, 0) == scenes.caption(shown)


def test_the_readers_take_everything(world, records):
    _, counts = world
    _, report = records
    names = {"captions_alt": "alt", "captions_dense": "dense"}
    for name, count in counts.items():
        if name == "eval_text":
            continue  # no ingested source: a text task reads it
        source = report["sources"][names.get(name, name)]
        kept = source["kept"] + source["rejected"].get("duplicate", 0)
        assert (source["read"], kept) == (count, count), (name, source)


def test_a_document_asks_one_hidden_thing(records):
    folder, _ = records
    kinds = Counter()
    for record in read_records(folder, "documents"):
        texts = [not_none(s.text) for s in record.segments if s.type == SegmentType.TEXT]
        assert len(texts) == len(record.images)
        assert 2 <= len(texts) <= CONFIG.max_examples
        if not texts[0].startswith(QUESTION):
            kinds["captions"] += 1
            continue
        answers = [text.removeprefix(QUESTION).strip() for text in texts]
        asked = [n for n, values in scenes.VALUES.items() if set(answers) <= set(values)]
        assert len(asked) == 1
        kinds[asked[0]] += 1
    assert set(kinds) == {"captions", *Attribute}


def test_an_evaluation_set_asks_the_same_of_all_and_answers_by_its_attribute(records):
    folder, _ = records
    for attribute in Attribute:
        found = list(read_records(folder, f"eval_{attribute.value}"))
        assert {r.segments[1].text for r in found} == {QUESTION}
        assert all(r.kind == RecordKind.CONVERSATION for r in found)
        assert all(set(r.references) <= set(scenes.VALUES[attribute]) for r in found)
        assert len({r.references[0] for r in found}) > 1


def test_a_conversation_asks_three_things_of_one_image_or_one_of_each(records):
    folder, _ = records
    attributes = {question: name for name, question in ASKED.items()}
    counts = Counter()
    for record in read_records(folder, "conversations"):
        kinds = [segment.type for segment in record.segments]
        texts = [not_none(s.text) for s in record.segments if s.type == SegmentType.TEXT]
        asked = [attributes[text] for text in texts[::2]]
        assert len(set(asked)) == 3
        assert all(t in scenes.VALUES[a] for t, a in zip(texts[1::2], asked, strict=True))
        places = [place for place, kind in enumerate(kinds) if kind == SegmentType.IMAGE]
        assert places in ([0], [0, 3, 6]), "before the questions"
        counts[len(places)] += 1
    assert set(counts) == {1, 3}


def test_a_world_of_fewer_values_has_the_first_of_them():
    values = scenes.first_values({Attribute.COLOUR: 2, Attribute.POSITION: 4})
    rng = np.random.default_rng(0)
    drawn = [scenes.draw_scene(rng, values) for _ in range(200)]
    assert {shown[Attribute.COLOUR] for shown in drawn} == {"red", "green"}
    assert {shown[Attribute.SHAPE] for shown in drawn} == set(scenes.SHAPES)
    written = " ".join(scenes.alt_text(shown, rng, values, 0.0, 1.0) for shown in drawn)
    assert not {"blue", "middle"} & set(written.split()), "nor do mistakes name others"
    with pytest.raises(ValueError, match=r"num_values\.shape: found 9, expected at most 6"):
        scenes.first_values({Attribute.SHAPE: 9})


@pytest.mark.parametrize("name", list(QUESTION_SETS))
def test_a_question_set_names_what_it_asks(records, name):
    folder, _ = records
    found = list(read_records(folder, name))
    assert {record.segments[1].text for record in found} == {
        ASKED[attribute] for attribute in QUESTION_SETS[name]
    }
    for record in found:
        (attribute,) = (a for a, text in ASKED.items() if text == record.segments[1].text)
        assert set(record.references) <= set(scenes.VALUES[attribute])


def test_training_and_evaluation_share_no_image(records):
    folder, report = records
    images = {
        name: {i.sha256 for record in read_records(folder, name) for i in record.images}
        for name in report["sources"]
    }
    evaluated = set().union(*(images[name] for name in images if name.startswith("eval")))
    trained = set().union(*(images[name] for name in images if not name.startswith("eval")))
    assert evaluated
    assert not evaluated & trained


def test_the_last_word_of_a_text_follows_from_the_rest(records):
    folder, _ = records
    skills = Counter()
    for record in read_records(folder, "text"):
        lines = record.segments[0].text.splitlines()
        places = {0, 1, 2}
        for line in lines:
            left, right = line.rsplit(" ", 1)
            if "=" in line:
                assert sum(map(int, left.removesuffix(" =").split(" + "))) == int(right)
            elif ":" in line:
                first, second = line.split(" : ")
                assert first == second
            else:
                words = left.removesuffix(" ->").split()
                places &= {words.index(right)}
                assert places
            skills["=" in line, ":" in line] += 1
    assert len(skills) == 3


def test_the_same_parameters_give_the_same_files_and_a_larger_world_holds_the_smaller(
    world, tmp_path
):
    folder, _ = world
    write_world(CONFIG, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(folder)
    larger = dataclasses.replace(CONFIG, num_items=14)
    write_world(larger, tmp_path / "larger")
    small, large = digests(folder), digests(tmp_path / "larger")
    images = [name for name in small if name.endswith(".png")]
    assert all(small[name] == large[name] for name in images)
    write_world(dataclasses.replace(CONFIG, seed=1), tmp_path / "other")
    assert not set(digests(tmp_path / "other").values()) & {small[name] for name in images}


def test_a_world_is_drawn_once_and_anew_for_other_parameters(tmp_path):
    sets = ("captions", "documents", "texts", "items", "conversations")
    parameters = {f"num_{name}": 2 for name in sets}
    folder = tmp_path / "world"
    first = prepare_world(parameters, folder)
    inode = folder.stat().st_ino
    assert prepare_world(parameters, folder) == first
    assert folder.stat().st_ino == inode
    assert prepare_world({**parameters, "num_texts": 3}, folder)["text"] == 3
    (folder / "world.json").unlink()
    with pytest.raises(ValueError, match=r"files but no world\.json"):
        prepare_world(parameters, folder)
    with pytest.raises(ParameterError, match=r"world\.num_scenes"):
        prepare_world({"num_scenes": 3}, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canvas": 32}, "at least 48"),
        ({"drop": 0.9, "wrong": 0.2}, "exceed 1"),
        ({"wrong": -0.1}, "at least 0 and at most 1"),
        ({"num_items": 0}, "at least 1"),
        ({"max_examples": 1}, "at least 2"),
        ({"num_values": {"word": 1}}, "at least 2"),
        ({"several_images": 2.0}, "at least 0 and at most 1"),
    ],
)
def test_what_no_world_can_have_is_refused(change, message):
    with pytest.raises(ParameterError, match=message):
        check_parameters({"world": change}, {"world": WorldConfig})
