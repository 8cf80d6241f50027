"""Fixtures of the evaluation tests: tasks, a tokenizer, and a tiny trained-like world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from evaluation_samples import (
    CAPTION_PROMPT,
    COLOURS,
    TEXTS,
    VQA_PROMPT,
    encoded_image,
    record_image,
    sample_captions,
    sample_questions,
    write_source,
)

from mm1_pipeline.config.evaluation import EvaluateConfig, Metric, TaskConfig
from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig, TokenizerConfig
from mm1_pipeline.corpus.records import Record, Segment
from mm1_pipeline.evaluation.tasks import Task, load_task
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.shards import write_shards
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer
from typed_values import not_none

LoadTask = Callable[..., Task]

IMAGE_SIZE, IMAGE_TOKENS = 16, 4
TRANSFORM = ImageTransform(size=IMAGE_SIZE, encoding="png")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads gain nothing on tensors this small, and stall where other tests run beside."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_task(tmp_path_factory: pytest.TempPathFactory) -> LoadTask:
    """Writes records and loads them as a task."""

    def make(records: Sequence[Record], metric: Metric, seed: int = 0, **changes) -> Task:
        prompt = VQA_PROMPT if metric == Metric.VQA_ACCURACY else CAPTION_PROMPT
        config = TaskConfig(
            **{"source": "source", "metric": metric, "prompt": prompt, "shots": (0, 2), **changes}
        )
        folder = tmp_path_factory.mktemp("task")
        write_source(folder, not_none(config.source), records)
        return load_task("task", config, folder, seed)

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    config = TokenizerConfig(vocab_size=300, min_frequency=1)
    return train_tokenizer(config, TEXTS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> MM1:
    """A random model whose answers depend on what it reads and sees."""
    config = MM1Config(
        vision=VisionConfig(
            image_size=IMAGE_SIZE, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=32
        ),
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=IMAGE_TOKENS),
        decoder=DecoderConfig(
            vocab_size=304,
            d_model=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            d_ff=64,
            tie_embeddings=False,
        ),
    )
    model = build_model(config, tokenizer.image_id, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # or the residual stream drowns everything but the last token
    return model.eval()


@dataclass(frozen=True)
class World:
    """What the stages before `evaluate` leave behind, tiny."""

    tokenizer: Path
    shards: Path
    records: Path
    model: Path
    config: EvaluateConfig

    def inputs(self) -> dict[str, Path]:
        return {
            "tokenizer_dir": self.tokenizer,
            "shards_dir": self.shards,
            "records_dir": self.records,
        }


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, model: MM1) -> World:
    folder = tmp_path_factory.mktemp("world")
    write_source(folder, "eval_captions", sample_captions())
    write_source(folder, "eval_questions", sample_questions())
    sources = {"pairs": RecordKind.CAPTION, "texts": RecordKind.TEXT}
    write_source(folder, "pairs", [training_pair(number) for number in range(40)])
    write_source(folder, "texts", [training_text(number) for number in range(40)])
    tokenizer.save(folder / "tokenizer")
    packing = PackingConfig(sequence_length=64, max_images=4, image_tokens=IMAGE_TOKENS)
    shards = ShardConfig(
        packing=packing,
        image=TRANSFORM,
        validation_fraction=0.3,
    )
    write_shards(shards, folder, tokenizer, sources, folder / "shards")
    save_model(model, folder / "model")
    config = EvaluateConfig(
        tasks={
            "captions": TaskConfig(
                source="eval_captions",
                metric=Metric.CIDER,
                prompt=CAPTION_PROMPT,
                max_new_tokens=6,
                shots=(0, 2),
            ),
            "questions": TaskConfig(
                source="eval_questions",
                metric=Metric.VQA_ACCURACY,
                prompt=VQA_PROMPT,
                stop=("\n", ".", ","),
                max_new_tokens=4,
                shots=(0, 2),
            ),
        },
        bootstrap_samples=100,
        batch_size=5,
        device="cpu",
    )
    return World(folder / "tokenizer", folder / "shards", folder, folder / "model", config)


def training_pair(number: int) -> Record:
    return Record(
        source="pairs",
        key=f"pair {number}",
        kind=RecordKind.CAPTION,
        segments=(
            Segment.of_image(0),
            Segment.of_text(f"A {COLOURS[number % 4]} square {number}."),
        ),
        images=(record_image(encoded_image(100 + number)),),
    )


def training_text(number: int) -> Record:
    text = f"The {COLOURS[number % 4]} shape has the number {number}."
    return Record("texts", f"text {number}", RecordKind.TEXT, (Segment.of_text(text),))
