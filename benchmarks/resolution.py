"""Reading digit strips with and without sub-images, after equal fine-tuning steps.

For each seed, the laptop model is fine-tuned on the sample's digit strips twice, from the same
start and with the same strips in the same order: as one overview of 64 pixels (`low`), and as the
overview with its 2 x 2 crops (`high`). Both then read the 300 strips that were held out, none of
whose digits is in the training data; an answer counts if it is the whole number.

    python benchmarks/resolution.py [--seeds 3] [--steps 400] [--batch 8] [--model FOLDER]

`--model` names a checkpoint to start from (with `--tokenizer`), such as the run's pre-trained
model; without it training starts from random weights. Prints a Markdown table, then one JSON
object as the last line: `high_minus_low` is the mean difference in exact answers, in points, `low`
and `high` its 95 % interval (Student's t over seeds). The more steps, the more there is to see:
in the first few hundred neither reads whole numbers.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from scipy import stats

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.shard import (
    ImageTransform,
    PackingConfig,
    ShardConfig,
    SubImageConfig,
    TokenizerConfig,
)
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    OptimizerConfig,
    OptimizerKind,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import conversation_sources
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.chat_prompts import ChatPrompts
from mm1_pipeline.evaluation.tasks import load_task
from mm1_pipeline.models.checkpoint import load_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.streams.conversations import tokenize_conversation
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.shards import write_shards
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer
from mm1_pipeline.training.stages import continue_from
from mm1_pipeline.training.train import train

ROOT = Path(__file__).parents[1]
SOURCES = ("digit_strips", "eval_digits")
GRIDS = {"low": 1, "high": 2}


def parameters(name: str) -> dict[str, Any]:
    """Parameters of the base environment, with the globals that they need."""
    values = yaml.safe_load((ROOT / "conf" / "base" / "globals.yml").read_text(encoding="utf-8"))
    values["sample_root"] = str(ROOT / "data" / "sample")
    text = (ROOT / "conf" / "base" / f"parameters_{name}.yml").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"${{globals:{key}}}", str(value))
    return yaml.safe_load(text)


def prepare(folder: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    """Records, and shards with and without crops."""
    raw = parameters("ingest")["ingest"]["sources"]
    sources = {name: raw[name] for name in SOURCES}
    ingest(TypeAdapter(IngestConfig).validate_python({"sources": sources}), folder / "records")
    kinds = conversation_sources(folder / "records")
    shards = {}
    for name, grid in GRIDS.items():
        config = ShardConfig(
            packing=PackingConfig(sequence_length=320, max_images=20, image_tokens=16),
            image=ImageTransform(size=64, encoding="png", anchor="top_left"),
            sub_images=SubImageConfig(grid=grid, skip_empty=True),
            validation_fraction=0.0,
        )
        shards[name] = folder / f"shards_{name}"
        write_shards(
            config,
            folder / "records",
            tokenizer,
            kinds,
            shards[name],
            tokenize=tokenize_conversation,
        )
    return shards


def training(arguments: argparse.Namespace, seed: int) -> TrainingConfig:
    """Fine-tuning on strips alone."""
    stream = StreamMixture(share=1.0, sources={"digit_strips": 1.0})
    return TrainingConfig(
        mixture=MixtureConfig(streams={"reading": stream}),
        optimizer=OptimizerConfig(
            kind=OptimizerKind.ADAFACTOR,
            learning_rate=arguments.learning_rate,
            weight_decay=0.0,
        ),
        schedule=ScheduleConfig(
            num_steps=arguments.steps,
            warmup_steps=max(1, arguments.steps // 20),
            final_fraction=0.0,
        ),
        checkpoint=CheckpointConfig(interval_steps=100_000),
        global_batch_size=arguments.batch,
        seed=seed,
        device="cpu",
        precision=arguments.precision,
    )


def exact_answers(
    model_dir: Path, shards_dir: Path, records_dir: Path, tokenizer: Tokenizer
) -> float:
    """Share of held-out strips that are read without a mistake, in percent."""
    config = TaskConfig(
        source="eval_digits",
        metric=Metric.EXACT_MATCH,
        prompt="{image} {question}",
        chat_prompt="{question}",
        max_new_tokens=8,
        shots=(0,),
    )
    task = load_task("digits", config, records_dir, seed=0)
    index = ShardIndex.read(shards_dir)
    prompts = ChatPrompts(task, tokenizer, index).build_all(0, seed=0)
    model = load_model(model_dir).eval()
    features = ImageFeatures(model, task.images, index.image, sub_images=index.sub_images)
    generator = Generator(model, tokenizer, features, batch_size=32)
    answers = generator.generate(prompts, max_new_tokens=8, stop=("\n",))
    references = {item.key: item.references[0] for item in task.items}
    right = [
        answer.text.strip() == references[prompt.key]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return 100 * statistics.fmean(right)


def run(arguments: argparse.Namespace, seed: int, shards: Path, folder: Path) -> float:
    """Fine-tunes once and reads the held-out strips."""
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if arguments.model is None:
        shape = TypeAdapter(MM1Config).validate_python(parameters("pretrain")["model"])
        objective = NextToken(build_model(shape, tokenizer.image_id, seed=seed))
    else:
        objective = continue_from(arguments.model, shards)
    place = folder / f"{shards.name}_{seed}"
    work, model = place / "work", place / "model"
    config = training(arguments, seed)
    train(config, objective, shards, stage=place.name, work_dir=work, output_dir=model)
    return exact_answers(place / "model", shards, folder / "records", tokenizer)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--tokenizer", type=Path, default=None)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.tokenizer is None:
            texts = ["What number is written here? User: Assistant: 0 1 2 3 4 5 6 7 8 9"]
            config = TokenizerConfig(vocab_size=512)
            tokenizer = train_tokenizer(config, texts * 2, folder / "tokenizer")
        else:
            tokenizer = Tokenizer.load(arguments.tokenizer)
            tokenizer.save(folder / "tokenizer")
        shards = prepare(folder, tokenizer)
        rows = [
            tuple(run(arguments, seed, shards[name], folder) for name in GRIDS)
            for seed in range(1, arguments.seeds + 1)
        ]
    print("| seed | low | high | difference |\n|---|---|---|---|")
    for seed, (low, high) in enumerate(rows, start=1):
        print(f"| {seed} | {low:.1f} | {high:.1f} | {high - low:+.1f} |")
    print(json.dumps(summary(rows, arguments, time.perf_counter() - started)))


def summary(
    rows: list[tuple[float, ...]], arguments: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    """The JSON object; the interval is Student's t over seeds."""
    differences = [high - low for low, high in rows]
    mean, half = statistics.fmean(differences), 0.0
    if len(rows) > 1:
        error = statistics.stdev(differences) / len(rows) ** 0.5
        half = float(stats.t.ppf(0.975, len(rows) - 1)) * error
    return {
        "high_minus_low": round(mean, 2),
        "low": round(mean - half, 2),
        "high": round(mean + half, 2),
        "exact_low": round(statistics.fmean(low for low, _ in rows), 2),
        "exact_high": round(statistics.fmean(high for _, high in rows), 2),
        "seeds": len(rows),
        "steps": arguments.steps,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "precision": arguments.precision,
        "start": "random" if arguments.model is None else "checkpoint",
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
