"""Whatever is done to evaluation data, none of it survives among what is learnt."""

from __future__ import annotations

import io
import random
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from mm1_pipeline.config.corpus_rules import DecontaminationConfig
from mm1_pipeline.config.ingest import IngestConfig, RecordKind
from mm1_pipeline.corpus.decontamination import Decontaminator, build_index, items_of
from mm1_pipeline.corpus.images import look_at_image
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import Record, RecordImage, Segment, read_records
from mm1_pipeline.ground.rejects import Rejected

WORDS = (
    *("stone", "river", "lamp", "green", "walks", "seven", "under"),
    *("cloud", "paper", "wheel", "often", "bread", "north"),
)
SAMPLE = Path(__file__).parents[2] / "data" / "sample"


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of large and small shapes; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return Image.blend(coarse.resize(size, Image.Resampling.BICUBIC), fine.resize(size), alpha=0.25)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sentence(seed: int, length: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(length))


def record(number: int, image: bytes, text: str) -> Record:
    picture = RecordImage(image, None, f"{number}", 1, 1)
    segments = (Segment.of_image(0),)
    return Record("eval", f"{number}", RecordKind.CAPTION, segments, (picture,), (text,))


@lru_cache(1)
def decontaminator() -> Decontaminator:
    folder = Path(tempfile.mkdtemp())
    records = [
        record(n, encode(scene(n, (320, 240) if n % 2 else (200, 260))), sentence(n, 8 + n))
        for n in range(12)
    ]
    build_index(items_of(records), DecontaminationConfig(), folder)
    return Decontaminator(folder)


@st.composite
def damages(draw):
    """What a copy may have gone through."""
    return {
        "crop": [draw(st.floats(0, 0.05)) for _ in range(4)],
        "scale": (draw(st.floats(0.4, 2.0)), draw(st.floats(0.4, 2.0))),
        "quality": draw(st.integers(30, 95)),
        "kind": draw(st.sampled_from(["JPEG", "WEBP", "PNG"])),
    }


def damage(image: Image.Image, how: dict) -> bytes:
    width, height = image.size
    left, top, right, bottom = how["crop"]
    image = image.crop(
        (
            round(left * width),
            round(top * height),
            round((1 - right) * width),
            round((1 - bottom) * height),
        )
    )
    scaled = [max(32, round(s * f)) for s, f in zip(image.size, how["scale"], strict=True)]
    resized = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
    options = {} if how["kind"] == "PNG" else {"quality": how["quality"]}
    return encode(resized, how["kind"], **options)


def shows_evaluation(data: bytes) -> bool:
    try:
        decontaminator().check_image(look_at_image(data)[2])
    except Rejected as error:
        return error.reason == "contaminated_image"
    return False


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 11), damages())
def test_no_damaged_copy_survives(number, how):
    original = scene(number, (320, 240) if number % 2 else (200, 260))
    assert shows_evaluation(damage(original, how))


@settings(max_examples=60, deadline=None)
@given(st.integers(100, 10_000), damages())
def test_other_pictures_survive(number, how):
    assert not shows_evaluation(damage(scene(number, (320, 240)), how))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 11), st.integers(0, 60), st.integers(0, 60), st.integers(0, 10))
def test_no_planted_ngram_survives(number, before, after, start):
    planted = sentence(number, 8 + number).split()
    start = min(start, max(0, len(planted) - 13))
    planted = planted[start : start + 13]  # the whole of a text that is shorter
    text = f"{sentence(501, before)} {', '.join(planted).upper()}! {sentence(502, after)}"
    with pytest.raises(Rejected) as caught:
        decontaminator().check_text(text)
    assert caught.value.reason == "contaminated_text"


@settings(max_examples=50, deadline=None)
@given(st.integers(1_000, 10_000), st.integers(0, 300))
def test_other_texts_survive(seed, length):
    decontaminator().check_text(sentence(seed, length))


def test_copies_of_every_image_of_the_sample_are_found(tmp_path):
    files = sorted(SAMPLE.glob("eval_*/images/*"))
    if not files:
        pytest.skip("the embedded sample is not checked out")
    chosen = files[::6]
    records = [record(n, file.read_bytes(), "") for n, file in enumerate(chosen)]
    build_index(items_of(records), DecontaminationConfig(), tmp_path)
    index = Decontaminator(tmp_path)
    missed = []
    for file in chosen:
        image = Image.open(file).convert("RGB")
        width, height = image.size
        cut = image.crop(
            (round(0.05 * width), round(0.05 * height), round(0.95 * width), round(0.95 * height))
        )
        small = (max(8, width // 2), max(8, height // 2))
        for how, copy in (
            ("resized", encode(image.resize(small, Image.Resampling.BICUBIC))),
            ("recompressed", encode(image, "JPEG", quality=40)),
            ("cropped", encode(cut)),
            ("all", encode(cut.resize(image.size), "JPEG", quality=60)),
        ):
            try:
                index.check_image(look_at_image(copy)[2])
                missed.append((file.name, how, image.size))
            except Rejected:
                pass
    assert not missed


def test_nothing_of_the_evaluation_data_is_in_the_records(tmp_path):
    images = [scene(n, (160, 120)) for n in range(4)]
    write(
        tmp_path / "eval.parquet",
        {"image": [encode(i) for i in images], "caption": [sentence(n, 14) for n in range(4)]},
    )
    cut = images[1].crop((8, 6, 152, 114)).resize((200, 150))
    rows = [
        (encode(images[0], "JPEG", quality=40), "a copy"),
        (encode(cut), "a part"),
        (encode(scene(50, (160, 120))), f"a picture of {sentence(2, 14)}"),
        (encode(scene(51, (160, 120))), "another picture"),
    ]
    data, captions = zip(*rows, strict=True)
    write(tmp_path / "pairs.parquet", {"image": list(data), "caption": list(captions)})
    documents = {
        "texts": [["a page", None, None], ["one more", None, None]],
        "images": [[None, rows[3][0], rows[0][0]], [None, rows[3][0], None]],
    }
    write(tmp_path / "pages.parquet", documents)
    plain = {"text": {"defaults": False}}
    sources = {
        # The training sources come first in the file, and still know what to keep out.
        "pairs": {"kind": "caption", "format": "image_parquet", **plain},
        "pages": {"kind": "interleaved", "format": "interleaved_parquet", **plain},
        "eval": {"kind": "caption", "format": "image_parquet", "split": "evaluation"},
    }
    sources = {n: {**s, "path": str(tmp_path / f"{n}.parquet")} for n, s in sources.items()}
    config = TypeAdapter(IngestConfig).validate_python({"sources": sources})
    report = ingest(config, tmp_path / "out")
    assert report["sources"]["pairs"]["rejected"] == {
        "contaminated_image": 2,
        "contaminated_text": 1,
    }
    assert report["sources"]["pages"]["rejected"] == {"contaminated_image": 1}
    assert report["decontamination"]["images"] == 4
    assert report["decontamination"]["rejected"] == {
        "pages": {"contaminated_image": 1},
        "pairs": {"contaminated_image": 2, "contaminated_text": 1},
    }
    kept = [r.segments[-1].text for r in read_records(tmp_path / "out", "pairs")]
    assert kept == ["another picture"]
    assert len(list(read_records(tmp_path / "out", "eval"))) == 4


def write(path: Path, columns: dict) -> None:
    types = {
        "image": pa.binary(),
        "caption": pa.string(),
        "texts": pa.list_(pa.string()),
        "images": pa.list_(pa.binary()),
    }
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path)
