"""Mixture of experts against the dense model it comes from, after equal further tokens.

A small dense decoder with encoder is pre-trained on the embedded sample. Then, for each seed, the
dense model and its upcycled copy (E experts in every n-th layer, top-2) are trained on with the
same batches, learning rate and schedule, and read the same held-out sequences. The seed decides
the router and the order of the data.

    python benchmarks/upcycling.py [--seeds 3] [--dense-steps 200] [--steps 150] [--experts 8]

Prints a Markdown table, then one JSON object as the last line: `moe_minus_dense_loss` is the mean
over seeds of the difference of held-out losses in nats a token (below 0, the mixture of experts is
better), `low` and `high` its 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import TypeAdapter
from scipy import stats

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import UpcycleConfig
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import pretraining_sources
from mm1_pipeline.models.checkpoint import load_model
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.streams.loader import build_validation_loader
from mm1_pipeline.streams.shards import write_shards
from mm1_pipeline.streams.tokenizer import prepare_tokenizer
from mm1_pipeline.training.stages import continue_from, upcycle_from
from mm1_pipeline.training.train import build_model, train

ROOT = Path(__file__).parents[1]
SOURCES = {"captions_easy_vqa": 2.0, "captions_tuxpaint": 1.0}
INTERLEAVED, TEXT = "documents_easy_vqa", "text"
IMAGE_SIZE, IMAGE_TOKENS, LENGTH = 32, 4, 192
MAX_VALIDATION = 64
"""Held-out sequences of each source."""


def prepare(folder: Path) -> Path:
    """Records, tokenizer and shards of the sample at a small size."""
    text = (ROOT / "conf" / "base" / "parameters_ingest.yml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text.replace("${globals:sample_root}", str(ROOT / "data" / "sample")))
    names = (*SOURCES, INTERLEAVED, TEXT)
    sources = {name: raw["ingest"]["sources"][name] for name in names}
    config = TypeAdapter(IngestConfig).validate_python({"sources": sources})
    ingest(config, folder / "records")
    tokenizer = prepare_tokenizer(
        TokenizerConfig(vocab_size=2048), folder / "records", folder / "tokenizer"
    )
    packing = PackingConfig(sequence_length=LENGTH, max_images=16, image_tokens=IMAGE_TOKENS)
    shards = ShardConfig(
        packing=packing,
        image=ImageTransform(size=IMAGE_SIZE, encoding="png"),
        validation_fraction=0.05,
    )
    kinds = pretraining_sources(folder / "records")
    write_shards(shards, folder / "records", tokenizer, kinds, folder / "shards")
    return folder / "shards"


def training(steps: int, seed: int, precision: Literal["float32", "bfloat16"]) -> TrainingConfig:
    """The dense model's training: MM1's mixture and learning-rate law."""
    streams = {
        "caption": StreamMixture(share=0.45, sources=dict(SOURCES)),
        "interleaved": StreamMixture(share=0.45, sources={INTERLEAVED: 1.0}),
        "text": StreamMixture(share=0.10, sources={TEXT: 1.0}),
    }
    return TrainingConfig(
        mixture=MixtureConfig(streams=streams),
        schedule=ScheduleConfig(num_steps=steps, warmup_steps=max(1, steps // 10)),
        checkpoint=CheckpointConfig(interval_steps=10_000),
        global_batch_size=20,
        seed=seed,
        device="cpu",
        precision=precision,
    )


def model_config() -> MM1Config:
    """A model of 0.9 million parameters."""
    return MM1Config(
        vision=VisionConfig(
            image_size=IMAGE_SIZE, patch_size=8, d_model=64, num_layers=2, num_heads=2, d_ff=128
        ),
        connector=ConnectorConfig(num_tokens=IMAGE_TOKENS, num_blocks=1),
        decoder=DecoderConfig(
            vocab_size=2048, d_model=128, num_layers=4, num_heads=4, num_kv_heads=2, d_ff=256
        ),
    )


@torch.inference_mode()
def held_out_loss(model_dir: Path, shards_dir: Path) -> float:
    """Nats a token, the mean over sources of each one's held-out sequences."""
    objective = NextToken(load_model(model_dir).eval())
    losses = []
    for source in (*SOURCES, INTERLEAVED, TEXT):
        total, count = 0.0, 0
        for number, batch in enumerate(build_validation_loader(shards_dir, source, 8)):
            if number * 8 >= MAX_VALIDATION:
                break
            total += objective(batch).losses.sum().item()
            count += int((batch["labels"] != IGNORED).sum())
        losses.append(total / count)
    return statistics.fmean(losses)


def run(objective: NextToken, config: TrainingConfig, shards: Path, folder: Path) -> float:
    """Trains and gives the held-out loss."""
    work, model = folder / "work", folder / "model"
    train(config, objective, shards, stage=folder.name, work_dir=work, output_dir=model)
    return held_out_loss(folder / "model", shards)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dense-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--drop-fraction", type=float, default=0.0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = prepare(folder)
        dense = training(arguments.dense_steps, 0, arguments.precision)
        start = NextToken(build_model(model_config(), shards, seed=0))
        start_loss = run(start, dense, shards, folder / "dense")
        rows = [one_seed(arguments, seed, folder, shards) for seed in range(1, arguments.seeds + 1)]
    print("| seed | dense | mixture of experts | difference |\n|---|---|---|---|")
    for seed, (of_dense, of_moe) in enumerate(rows, start=1):
        print(f"| {seed} | {of_dense:.4f} | {of_moe:.4f} | {of_moe - of_dense:+.4f} |")
    print(json.dumps(summary(rows, start_loss, arguments, time.perf_counter() - started)))


def one_seed(
    arguments: argparse.Namespace, seed: int, folder: Path, shards: Path
) -> tuple[float, float]:
    """Held-out losses of the dense model and of the mixture of experts."""
    config = UpcycleConfig(
        moe=MoEConfig(num_experts=arguments.experts, every_n_layers=arguments.every),
        schedule=training(arguments.steps, seed, arguments.precision).schedule,
        drop_fraction=arguments.drop_fraction,
        seed=seed,
    )
    further = config.training(training(arguments.dense_steps, 0, arguments.precision))
    dense_dir = folder / "dense" / "model"
    of_dense = run(continue_from(dense_dir, shards), further, shards, folder / f"dense_{seed}")
    experts = upcycle_from(config, dense_dir, shards, folder / f"moe_{seed}" / "up", num_streams=3)
    of_moe = run(experts, further, shards, folder / f"moe_{seed}")
    return of_dense, of_moe


def summary(
    rows: list[tuple[float, float]], start: float, arguments: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """The JSON object; the interval is Student's t over seeds."""
    differences = [of_moe - of_dense for of_dense, of_moe in rows]
    mean = statistics.fmean(differences)
    half = 0.0
    if len(differences) > 1:
        error = statistics.stdev(differences) / len(differences) ** 0.5
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return {
        "moe_minus_dense_loss": round(mean, 5),
        "low": round(mean - half, 5),
        "high": round(mean + half, 5),
        "dense_loss_before": round(start, 5),
        "dense_loss": round(statistics.fmean(of_dense for of_dense, _ in rows), 5),
        "moe_loss": round(statistics.fmean(of_moe for _, of_moe in rows), 5),
        "seeds": len(rows),
        "experts": arguments.experts,
        "every_n_layers": arguments.every,
        "dense_steps": arguments.dense_steps,
        "steps": arguments.steps,
        "precision": arguments.precision,
        "drop_fraction": arguments.drop_fraction,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
