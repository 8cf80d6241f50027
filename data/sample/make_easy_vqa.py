"""Makes the two easy-VQA corpora of the embedded sample from the PyPI package `easy-vqa`.

    pip install easy-vqa==1.0
    python data/sample/make_easy_vqa.py

Both are made from the package's training split; its test images are never read. Captions
say what the split's own answers say (colour, shape) and a size measured from the pixels.
Documents put several images, each with one question and its answer, into one reading
order, in the format that few-shot prompts have. Same package, same bytes.
"""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SAMPLE = Path(__file__).parent
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SMALL_BELOW, LARGE_ABOVE = 20, 27
"""Longer side of the shape in pixels; these two cut the 4,000 training shapes into thirds."""
PASSES = 3
"""How often each image occurs in the documents, each time with another question."""
MAX_IMAGES = 10
"""Images in a document: 1 to this many, so that every number of shots is seen."""


def package_split(split: str) -> Path:
    """Folder of one split inside the installed package."""
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise SystemExit("easy-vqa is not installed; run: pip install easy-vqa==1.0")
    return Path(spec.origin).parent / "data" / split


def shape_size(image: Image.Image) -> str:
    """Says how large the one shape on the plain background is."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    rows, columns = np.nonzero(np.abs(pixels - np.median(border, axis=0)).sum(axis=-1) > 20)
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    if side < SMALL_BELOW:
        return "small"
    return "large" if side > LARGE_ABOVE else "medium"


def attribute(names: tuple[str, ...], questions: list[tuple[str, str]]) -> str | None:
    """Which of the names holds for an image, or None where its questions do not tell."""
    for question, answer in questions:
        if answer in names:
            return answer
        words = question.rstrip("?").split()
        asked = [name for name in names if name in words]
        negated = "not" in words or "no" in words
        if asked and (answer == "no") == negated:
            return asked[0]
    return None


def lossless_png(image: Image.Image) -> bytes:
    """The same pixels in fewer bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def choose_questions(questions: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Open questions first to the half, since three quarters of all are yes or no."""
    by_form: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for question, answer in sorted(set(questions)):
        by_form[answer in ("yes", "no")].append((question, answer))
    for group in by_form.values():
        rng.shuffle(group)
    order = [rng.random() < 0.5 for _ in range(PASSES)]
    groups = (by_form[form] or by_form[not form] for form in order)
    return [group.pop() for group in groups if group]


def main() -> None:
    """Writes both corpora."""
    split = package_split("train")
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image_id in json.loads((split / "questions.json").read_text()):
        questions[image_id].append((question, answer))
    image_ids = sorted(questions)
    images = {i: Image.open(split / "images" / f"{i}.png") for i in image_ids}
    encoded = {i: lossless_png(images[i]) for i in image_ids}
    write_captions(image_ids, images, encoded, questions)
    write_documents(image_ids, encoded, questions)


def write_captions(image_ids, images, encoded, questions) -> None:
    """One caption an image: `a small red circle`."""
    captions = {}
    for i in image_ids:
        shape, colour = attribute(SHAPES, questions[i]), attribute(COLOURS, questions[i])
        if shape and colour:
            captions[i] = f"a {shape_size(images[i])} {colour} {shape}"
    print(f"{len(image_ids) - len(captions)} images leave shape or colour open and get no caption")
    table = pa.table(
        {
            "key": [f"train_{i:06d}" for i in captions],
            "image": pa.array([encoded[i] for i in captions], pa.binary()),
            "caption": list(captions.values()),
        }
    )
    write(table, SAMPLE / "captions_easy_vqa" / "00000.parquet")


def write_documents(image_ids, encoded, questions) -> None:
    """Documents of 1 to MAX_IMAGES images, each followed by a question and its answer."""
    rng = random.Random(0)
    chosen = {i: choose_questions(questions[i], rng) for i in image_ids}
    uses = [
        (i, turn)
        for turn in range(PASSES)
        for i in rng.sample(image_ids, len(image_ids))
        if turn < len(chosen[i])
    ]
    keys, texts, pictures = [], [], []
    while uses:
        size = rng.randint(1, MAX_IMAGES)
        examples, uses = uses[:size], uses[size:]
        keys.append(f"document_{len(keys):05d}")
        document_texts: list[str | None] = []
        document_images: list[bytes | None] = []
        for image_id, turn in examples:
            question, answer = chosen[image_id][turn]
            document_images += [encoded[image_id], None]
            document_texts += [None, f"Question: {question} Short answer: {answer}"]
        texts.append(document_texts)
        pictures.append(document_images)
    table = pa.table(
        {
            "key": keys,
            "images": pa.array(pictures, pa.list_(pa.binary())),
            "texts": pa.array(texts, pa.list_(pa.string())),
        }
    )
    write(table, SAMPLE / "interleaved_easy_vqa" / "00000.parquet")


def write(table: pa.Table, path: Path) -> None:
    """Writes one Parquet file; the pixels are compressed already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=15)
    print(f"{path.relative_to(SAMPLE)}: {table.num_rows} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
