"""Records, a tokenizer and shards that the tests of streams share."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm1_pipeline.config.ingest import RecordKind, SourceConfig, SourceFormat
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig, TokenizerConfig
from mm1_pipeline.corpus.records import (
    Record,
    RecordImage,
    RecordWriter,
    Segment,
    write_sources,
)
from mm1_pipeline.streams.shards import write_shards
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    *("red", "blue", "green", "small", "large", "round", "square"),
    *("cat", "dog", "tree", "house", "river", "runs", "sleeps", "near"),
]
KINDS = {
    "pairs": RecordKind.CAPTION,
    "few_pairs": RecordKind.CAPTION,
    "pages": RecordKind.INTERLEAVED,
    "books": RecordKind.TEXT,
}
FORMATS = {
    RecordKind.CAPTION: SourceFormat.IMAGE_PARQUET,
    RecordKind.INTERLEAVED: SourceFormat.INTERLEAVED_PARQUET,
    RecordKind.TEXT: SourceFormat.JSONL,
}
COUNTS = {"pairs": 150, "few_pairs": 45, "pages": 40, "books": 60}


def sentence(rng: random.Random, low: int = 3, high: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def picture(rng: random.Random) -> RecordImage:
    width, height = rng.randint(10, 40), rng.randint(10, 40)
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(height, width, 3)).save(buffer, "PNG")
    data = buffer.getvalue()
    return RecordImage(data, None, hashlib.sha256(data).hexdigest(), width, height)


@pytest.fixture(scope="session")
def make_picture() -> Callable[[random.Random], RecordImage]:
    return picture


def make_record(source: str, number: int, rng: random.Random) -> Record:
    kind = KINDS[source]
    segments: list[Segment] = []
    images: list[RecordImage] = []
    match kind:
        case RecordKind.CAPTION:
            images = [picture(rng)]
            segments = [Segment.of_image(0), Segment.of_text(sentence(rng))]
        case RecordKind.TEXT:
            segments = [Segment.of_text(sentence(rng, 5, 80))]
        case _:
            for index in range(rng.randint(1, 7)):
                images.append(picture(rng))
                segments += [Segment.of_text(sentence(rng)), Segment.of_image(index)]
            segments.append(Segment.of_text(sentence(rng)))
    return Record(source, f"{source}-{number}", kind, tuple(segments), tuple(images))


@pytest.fixture(scope="session")
def records_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("records")
    for source, count in COUNTS.items():
        rng = random.Random(source)
        with RecordWriter(directory / "records" / source, records_per_file=50) as writer:
            for number in range(count):
                writer.write(make_record(source, number, rng))
    sources = {
        name: SourceConfig(kind=kind, format=FORMATS[kind], path="raw")
        for name, kind in KINDS.items()
    }
    write_sources(directory, sources)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    rng = random.Random(0)
    texts = [sentence(rng) for _ in range(200)]
    directory = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(TokenizerConfig(vocab_size=400), texts, directory)


@pytest.fixture(scope="session")
def shard_config() -> ShardConfig:
    return ShardConfig(
        packing=PackingConfig(sequence_length=64, max_images=4, image_tokens=4),
        image=ImageTransform(size=16, encoding="png"),
        validation_fraction=0.2,
        shard_bytes=20_000,
    )


@pytest.fixture(scope="session")
def shards(
    records_dir: Path,
    tokenizer: Tokenizer,
    shard_config: ShardConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict]:
    """The folder of the shards and the report; tests only read it."""
    directory = tmp_path_factory.mktemp("shards")
    return directory, write_shards(shard_config, records_dir, tokenizer, KINDS, directory)


@pytest.fixture(scope="session")
def shards_dir(shards: tuple[Path, dict]) -> Path:
    return shards[0]


@pytest.fixture
def shards_copy(shards_dir: Path, tmp_path: Path) -> Path:
    """Shards that a test may damage."""
    return shutil.copytree(shards_dir, tmp_path / "shards")
