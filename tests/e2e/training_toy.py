"""A tiny training that can be learned, interrupted and repeated."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import time
from pathlib import Path

import torch
from PIL import Image

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig, TokenizerConfig
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    OptimizerConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.corpus.records import Record, RecordImage, RecordWriter, Segment
from mm1_pipeline.models.initialization import initialize
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.shards import write_shards
from mm1_pipeline.streams.tokenizer import train_tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220)}
KINDS = {
    "pairs": RecordKind.CAPTION,
    "pages": RecordKind.INTERLEAVED,
    "books": RecordKind.TEXT,
}
STREAMS = ("caption", "interleaved", "text")
NUM_STEPS = 40
SEED = 5

CONFIG = TrainingConfig(
    mixture=MixtureConfig(
        streams={
            "caption": StreamMixture(share=0.45, sources={"pairs": 1.0}),
            "interleaved": StreamMixture(share=0.45, sources={"pages": 1.0}),
            "text": StreamMixture(share=0.1, sources={"books": 1.0}),
        }
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    schedule=ScheduleConfig(num_steps=NUM_STEPS, warmup_steps=4),
    checkpoint=CheckpointConfig(interval_steps=7),
    global_batch_size=20,
    seed=SEED,
    device="cpu",
)

MODEL = MM1Config(
    vision=VisionConfig(
        image_size=16, patch_size=8, d_model=32, num_layers=1, num_heads=2, d_ff=64
    ),
    connector=ConnectorConfig(num_tokens=1, num_blocks=1),
    decoder=DecoderConfig(
        vocab_size=320, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=64
    ),
)


class DropoutMM1(MM1):
    """Draws random numbers in every step, so that a resume has to restore their state."""

    def embed(self, input_ids, pixel_values):
        embeddings = super().embed(input_ids, pixel_values)
        return torch.nn.functional.dropout(embeddings, 0.1, self.training)


def build_toy(shards_dir: Path, kind: type[MM1] = DropoutMM1) -> MM1:
    model = kind(MODEL, ShardIndex.read(shards_dir).special_ids["image"])
    initialize(model, SEED)
    return model


def write_toy_shards(folder: Path) -> Path:
    """Pictures of one colour that are called by it, and sentences that repeat."""
    rng = random.Random(0)
    texts = []
    for source, kind in KINDS.items():
        with RecordWriter(folder / "records" / source, records_per_file=100) as writer:
            for number in range(100):
                colours = [rng.choice(list(COLOURS)) for _ in range(3)]
                record = _record(source, kind, number, colours)
                texts += [segment.text for segment in record.segments if segment.text]
                writer.write(record)
    config = ShardConfig(
        packing=PackingConfig(sequence_length=48, max_images=4, image_tokens=1),
        image=ImageTransform(size=16, encoding="png"),
        validation_fraction=0.1,
    )
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=320), texts, folder / "tokenizer")
    write_shards(config, folder, tokenizer, KINDS, folder / "shards")
    return folder / "shards"


def _record(source: str, kind: RecordKind, number: int, colours: list[str]) -> Record:
    sentences = [f"A {colour} square on a {colour} ground." for colour in colours]
    segments, images = [Segment.of_text(" ".join(sentences))], []
    if kind != RecordKind.TEXT:
        used = colours[:1] if kind == RecordKind.CAPTION else colours
        images = [_picture(colour) for colour in used]
        segments = []
        for index, sentence in enumerate(sentences[: len(used)]):
            segments += [Segment.of_image(index), Segment.of_text(sentence)]
    return Record(source, f"{source}-{number}", kind, tuple(segments), tuple(images))


def _picture(colour: str) -> RecordImage:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), COLOURS[colour]).save(buffer, "PNG")
    data = buffer.getvalue()
    return RecordImage(data, None, hashlib.sha256(data).hexdigest(), 16, 16)


def train_toy(shards_dir: Path, work_dir: Path, output_dir: Path, config=CONFIG):
    from mm1_pipeline.models.next_token import NextToken
    from mm1_pipeline.training.train import train

    torch.set_num_threads(1)
    model = build_toy(shards_dir)
    arguments = {"stage": "pretrain", "work_dir": work_dir, "output_dir": output_dir}
    return train(config, NextToken(model), shards_dir, **arguments), model


def train_and_be_killed(shards_dir: Path, work_dir: Path, output_dir: Path, step: int) -> None:
    """Trains in a child process until it has logged a step, then kills it, from outside.

    The child is forked, for imports take longer than trainings.
    """
    child = os.fork()
    if child == 0:
        try:
            train_toy(shards_dir, work_dir, output_dir)
        finally:
            os._exit(0)
    rows = work_dir / "training_pretrain.jsonl"
    while not rows.exists() or rows.read_bytes().count(b"\n") < step:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the training ended before it was killed"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
