"""Training speed beside what a user would pick instead, on the sample's own documents.

The sample is ingested and packed by the pipeline itself (environment `base`), then measured with
that environment's model, in float32, on one thread:

- `vs_hf_padded`, `vs_hf_bucketed`: useful tokens a second (text and image tokens, no padding)
  against a LLaVA of transformers with the same dimensions (CLIP ViT, our connector as its
  projector, Llama). A step is a packed batch of the training's own mixture (captions,
  interleaved documents and text); LLaVA gets the very same documents, 32 a batch and with
  gradients accumulated over the step: in random order, padded to the longest of each batch, or
  sorted by length first. Both sides have pixels and ids ready. The mixture is what the sample is
  trained with, and so its real distribution of lengths. The same is then measured on the caption
  stream alone, whose documents are short and of even length: the harder case, in the table only.
- `vs_nanovlm_style`: the same against rows as nanoVLM packs them, made of the same LLaVA. As there:
  documents sorted by length go into the lightest row of the training's length that has room for
  their tokens and images, each followed by one pad; all images of a batch are encoded together;
  nothing keeps a document from attending to those before it in its row. Other than there: the
  modules are transformers' with our dimensions, not SigLIP and SmolLM2; all rows of a step are one
  batch; a document that fills a row is kept, without its pad; no attention mask is passed, so that
  the causal kernel runs, which is the fastest way to compute the same.
- `overhead_vs_plain_loop`: what `train` adds to a step over a bare loop that reads the same batches
  from the same loader, computes the loss, clips and steps the same optimizer. Counted is the time
  from step to step: Composer, guards, metrics and display; checkpoints (one every thousand steps)
  and what happens once a training (checks, start, Kedro's node) are not.
- `moe_vs_dense_step`: a whole step (with the optimizer) of 8 experts, top-2, in every layer, over
  that of a dense decoder with as many active weights.

All runs of a comparison alternate; medians are compared step by step.

    python benchmarks/training.py [--steps 6] [--repetitions 3] [--shards FOLDER]

Prints a Markdown table, then one JSON object as the last line. The first three are ratios of speed
(above 1, ours is faster), the fourth a share of a step's time, the last ours over the dense one's.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import yaml
from pydantic import TypeAdapter
from torch import nn

from _llava import build_llava
from mm1_pipeline.config.model import Activation, MM1Config, MoEConfig
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.streams.loader import build_loader
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.training.optimizer import build_optimizer
from mm1_pipeline.training.schedule import build_scheduler
from mm1_pipeline.training.train import build_model, train

ROOT = Path(__file__).parents[1]
DOCUMENTS_A_BATCH = 32
LEARNING_RATE = 1e-3

Batch = dict[str, Any]


def make_shards(folder: Path) -> Path:
    """Runs the stages `ingest` and `shard` on the sample, with a data root of its own."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    file = folder / "conf" / "base" / "globals.yml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "data_root": str(folder / "data")}))
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=shard"]
    subprocess.run(
        [*command, f"--conf-source={folder / 'conf'}"], cwd=ROOT, check=True, stdout=sys.stderr
    )
    artifact = folder / "data" / "05_model_input" / "shards"
    return artifact / (artifact / "CURRENT").read_text().strip()


def base_parameters() -> tuple[MM1Config, TrainingConfig]:
    """The model and the training of the environment `base`."""
    from kedro.config import OmegaConfigLoader

    loader = OmegaConfigLoader(str(ROOT / "conf"), base_env="base", default_run_env="base")
    parameters = loader["parameters"]
    model = TypeAdapter(MM1Config).validate_python(parameters["model"])
    training = TypeAdapter(TrainingConfig).validate_python(parameters["pretrain"])
    # CLIP's layout, so that transformers' encoder has the same operations.
    vision = dataclasses.replace(
        model.vision, class_token=True, activation=Activation.QUICK_GELU, final_norm=False
    )
    return dataclasses.replace(model, vision=vision), training


def captions_only(config: TrainingConfig) -> MixtureConfig:
    """The caption stream alone."""
    sources = config.mixture.streams["caption"].sources
    return MixtureConfig(streams={"caption": StreamMixture(share=1.0, sources=sources)})


def read_batches(
    shards_dir: Path, mixture: MixtureConfig, config: TrainingConfig, num_steps: int
) -> list[Batch]:
    """Whole batches in memory."""
    loader = build_loader(
        shards_dir,
        mixture,
        num_steps=num_steps,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
    )
    return list(loader)


def optimizer_of(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The same for every arm."""
    return build_optimizer(model, config.optimizer, LEARNING_RATE)


def our_step(
    objective: NextToken, config: TrainingConfig, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[Batch], float]:
    """Forward, backward, clipping, optimizer, in a plain loop."""
    optimizer = optimizer or optimizer_of(objective, config)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        output = objective(batch)
        loss = output.losses.sum() / objective.count_targets(batch)
        for term in output.terms.values():
            if term.coefficient:
                loss = loss + term.coefficient * term.value
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        return loss.item()

    return step


def documents_of(batch: Batch, image_id: int, num_tokens: int) -> list[Batch]:
    """The documents of a packed batch, each with its image; padding is none of them."""
    ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    images, documents = 0, []
    borders = batch["cu_seqlens"].tolist()
    for start, end in itertools.pairwise(borders):
        taken = int((ids[start:end] == image_id).sum()) // num_tokens
        pixels = batch["pixel_values"][images : images + taken]
        images += taken
        # LLaVA shifts labels itself: its label at a place is the token there.
        shifted = torch.cat([torch.tensor([IGNORED]), labels[start : end - 1]])
        if bool((labels[start:end] != IGNORED).any()):
            documents.append({"ids": ids[start:end], "labels": shifted, "pixels": pixels})
    assert images == len(batch["pixel_values"])
    return documents


def padded_batches(documents: Sequence[Batch], pad_id: int, *, bucketed: bool) -> list[Batch]:
    """The documents in batches, padded on the right to the longest of each."""
    # Not in the order of our sequences, which packing has chosen by length.
    documents = random.Random(0).sample(documents, len(documents))
    if bucketed:
        documents = sorted(documents, key=lambda document: len(document["ids"]))
    batches = []
    for first in range(0, len(documents), DOCUMENTS_A_BATCH):
        members = documents[first : first + DOCUMENTS_A_BATCH]
        pad = nn.utils.rnn.pad_sequence
        ids = pad([d["ids"] for d in members], batch_first=True, padding_value=pad_id)
        labels = pad([d["labels"] for d in members], batch_first=True, padding_value=IGNORED)
        ones = [torch.ones_like(d["ids"]) for d in members]
        pixels = torch.cat([d["pixels"] for d in members])
        batches.append(
            {
                "input_ids": ids,
                "labels": labels,
                "attention_mask": pad(ones, batch_first=True),
                "pixel_values": pixels if len(pixels) else None,
            }
        )
    return batches


def knapsack_rows(
    documents: Sequence[Batch], pad_id: int, *, length: int, max_images: int
) -> list[Batch]:
    """The documents in rows of one length, the lightest row first, as one batch.

    Args:
        documents: each fits a row.
        pad_id: separates documents and fills rows up.
        length: positions of a row.
        max_images: most images of a row.
    """
    rows: list[list[Batch]] = []
    for document in sorted(documents, key=lambda document: -len(document["ids"])):
        by_load = sorted(rows, key=_load)
        fitting = (row for row in by_load if _fits(row, document, length, max_images))
        chosen = next(fitting, None)
        if chosen is None:
            rows.append(chosen := [])
        chosen.append(document)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + len(document["ids"])
            ids[number, start:end] = document["ids"]
            labels[number, start:end] = document["labels"]
            start = end + 1
    pixels = torch.cat([document["pixels"] for row in rows for document in row])
    return [{"input_ids": ids, "labels": labels, "pixel_values": pixels if len(pixels) else None}]


def _load(row: Sequence[Batch]) -> int:
    """Positions that a row's documents take, each with a pad behind it."""
    return sum(len(document["ids"]) + 1 for document in row)


def _fits(row: Sequence[Batch], document: Batch, length: int, max_images: int) -> bool:
    num_images = sum(len(member["pixels"]) for member in (*row, document))
    return _load(row) + len(document["ids"]) <= length and num_images <= max_images


def llava_step(model: Any, config: TrainingConfig) -> Callable[[list[Batch]], float]:
    """The same step; gradients are those of the mean over all labels of its batches."""
    optimizer = optimizer_of(model, config)

    def step(batches: list[Batch]) -> float:
        optimizer.zero_grad()
        counts = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches]
        total = 0.0
        for batch, count in zip(batches, counts, strict=True):
            loss = model(**batch).loss * (count / sum(counts))
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        return total

    return step


def alternate(
    arms: Mapping[str, tuple[Callable[[Any], float], Sequence[Any]]], repetitions: int
) -> dict[str, float]:
    """Seconds of all steps: of each step the median over the repetitions.

    Args:
        arms: by name, a step and what it is called on, one a step.
        repetitions: rounds in which every arm makes every step once; one more goes before.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    num_steps = len(next(iter(arms.values()))[1])
    for repetition in range(repetitions + 1):
        rounds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(num_steps):
            for name, (step, batches) in arms.items():
                begun = time.perf_counter()
                step(batches[number])
                rounds[name].append(time.perf_counter() - begun)
        for name in arms:
            if repetition:
                times[name].append(rounds[name])
    return {
        name: sum(statistics.median(of_step) for of_step in zip(*rounds, strict=True))
        for name, rounds in times.items()
    }


def compare_with_llava(
    model: MM1Config,
    config: TrainingConfig,
    shards_dir: Path,
    steps: int,
    repetitions: int,
    mixture: MixtureConfig,
) -> dict[str, float]:
    """Useful tokens a second over those of transformers: padded, bucketed, and in rows."""
    note(f"documents of {', '.join(mixture.streams)}")
    index = ShardIndex.read(shards_dir)
    image_id, pad_id = index.special_ids["image"], index.special_ids["pad"]
    batches = read_batches(shards_dir, mixture, config, steps)
    ours = NextToken(build_model(model, shards_dir, seed=0))
    arms: dict[str, Any] = {"ours": (our_step(ours, config), batches)}
    documents = [documents_of(b, image_id, model.connector.num_tokens) for b in batches]
    kept = sum(len(document["ids"]) for of_step in documents for document in of_step)
    packing = index.packing
    row = {"length": packing.sequence_length, "max_images": packing.max_images}
    peers: dict[str, Callable[[list[Batch]], list[Batch]]] = {
        "vs_hf_padded": lambda of_step: padded_batches(of_step, pad_id, bucketed=False),
        "vs_hf_bucketed": lambda of_step: padded_batches(of_step, pad_id, bucketed=True),
        "vs_nanovlm_style": lambda of_step: knapsack_rows(of_step, pad_id, **row),
    }
    for name, make_batches in peers.items():
        connector = build_model(model, shards_dir, seed=0).connector
        llava = build_llava(model, image_id, connector).train()
        made = [make_batches(of_step) for of_step in documents]
        size = sum(batch["input_ids"].numel() for of_step in made for batch in of_step)
        note(f"{name}: {1 - kept / size:.0%} of the peer's positions are padding")
        check_same_work(llava, ours)
        arms[name] = (llava_step(llava, config), made)
    fill = kept / sum(batch["input_ids"].numel() for batch in batches)
    note(f"ours: {1 - fill:.0%} of positions are padding; {kept} useful tokens")
    seconds = alternate(arms, repetitions)
    for name, value in seconds.items():
        note(f"{name}: {kept / value:,.0f} useful tokens/s")
    return {name: seconds[name] / seconds["ours"] for name in peers}


def check_same_work(llava: nn.Module, ours: NextToken) -> None:
    """Both sides have as many weights, but for the norm of a class token that none reads."""
    unread = "post_layernorm"
    theirs = sum(p.numel() for name, p in llava.named_parameters() if unread not in name)
    mine = sum(weight.numel() for weight in ours.parameters())
    if theirs != mine:
        raise RuntimeError(f"the models differ: {theirs} weights against our {mine}")


def measure_overhead(
    model: MM1Config, config: TrainingConfig, shards_dir: Path, steps: int, repetitions: int
) -> float:
    """What `train` adds to the time from step to step."""
    steps = max(12, 2 * steps)
    config = dataclasses.replace(
        config,
        schedule=ScheduleConfig(num_steps=steps, warmup_steps=2),
        checkpoint=CheckpointConfig(interval_steps=1_000),
    )

    def whole(folder: Path) -> list[float]:
        objective = NextToken(build_model(model, shards_dir, seed=0))
        rows = train(
            config,
            objective,
            shards_dir,
            stage="benchmark",
            work_dir=folder / "work",
            output_dir=folder / "model",
        )
        return [row["timing"]["time"] for row in rows]

    def plain(folder: Path) -> list[float]:
        objective = NextToken(build_model(model, shards_dir, seed=0))
        optimizer = optimizer_of(objective, config)
        step = our_step(objective, config, optimizer)
        loader = build_loader(
            shards_dir,
            config.mixture,
            num_steps=steps,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            cache_dir=folder,
        )
        scheduler = build_scheduler(optimizer, config.schedule)
        stamps = []
        for batch in loader:
            step(batch)
            scheduler.step()
            stamps.append(time.time())
        return stamps

    gaps: dict[str, list[list[float]]] = {"whole": [], "plain": []}
    for _ in range(repetitions):
        for name, run in (("whole", whole), ("plain", plain)):
            with tempfile.TemporaryDirectory(prefix="mm1-benchmark-") as folder:
                stamps = run(Path(folder))
            # The first step warms up; the last one of `train` is followed by a checkpoint.
            pairs = itertools.pairwise(stamps[1:-1])
            gaps[name].append([later - earlier for earlier, later in pairs])
    seconds = {
        name: sum(statistics.median(of_step) for of_step in zip(*runs, strict=True))
        for name, runs in gaps.items()
    }
    num_gaps = len(gaps["plain"][0])
    for name, value in seconds.items():
        note(f"{name} loop: {1_000 * value / num_gaps:.1f} ms a step")
    return seconds["whole"] / seconds["plain"] - 1


def compare_experts(
    model: MM1Config, config: TrainingConfig, shards_dir: Path, steps: int, repetitions: int
) -> float:
    """A step with 8 experts over a dense one with the same active weights."""
    batches = read_batches(shards_dir, config.mixture, config, steps)
    decoder, moe = model.decoder, MoEConfig(num_experts=8, top_k=2, d_ff=model.decoder.d_ff // 2)
    with_experts = dataclasses.replace(model, decoder=dataclasses.replace(decoder, moe=moe))
    arms = {
        name: (our_step(NextToken(build_model(shape, shards_dir, seed=0)), config), batches)
        for name, shape in (("dense", model), ("experts", with_experts))
    }
    seconds = alternate(arms, repetitions)
    for name, value in seconds.items():
        note(f"{name}: {1_000 * value / steps:.0f} ms a step")
    return seconds["experts"] / seconds["dense"]


def note(text: str) -> None:
    """Details, beside the results."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measures everything and prints it."""
    parser = argparse.ArgumentParser(description="Training speed beside the alternatives.")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shards", type=Path, default=None, help="packed before, by `base`")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    model, config = base_parameters()
    config = dataclasses.replace(config, device="cpu")
    with tempfile.TemporaryDirectory(prefix="mm1-benchmark-") as folder:
        shards_dir = arguments.shards or make_shards(Path(folder))
        size = model, config, shards_dir, arguments.steps, arguments.repetitions
        results = {
            **compare_with_llava(*size, config.mixture),
            "overhead_vs_plain_loop": measure_overhead(*size),
            "moe_vs_dense_step": compare_experts(*size),
        }
        captions = compare_with_llava(*size, captions_only(config))
    targets = {"vs_hf_padded": ">= 2.0", "vs_hf_bucketed": ">= 1.3"}
    targets |= {"overhead_vs_plain_loop": "<= 0.03", "moe_vs_dense_step": "<= 1.3"}
    print("| measure | found | target |\n|---|---|---|")
    for name, value in results.items():
        print(f"| {name} | {value:.3f} | {targets.get(name, '')} |")
    for name, value in captions.items():
        print(f"| {name}, captions alone | {value:.3f} | |")
    print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
