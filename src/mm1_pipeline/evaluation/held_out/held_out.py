"""Losses on what training never saw: every stream's held-out shards, and captions."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm1_pipeline.config.evaluation import EvaluateConfig, Metric
from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.evaluation.held_out.caption_losses import (
    DIGITS,
    CaptionDocument,
    CaptionLosses,
    caption_document,
    caption_documents,
    caption_losses,
    token_losses,
)
from mm1_pipeline.evaluation.tasks import Task
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.collation import split_batch
from mm1_pipeline.streams.loader import build_validation_loader
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

POOLED = "validation"
"""Name of the set of all sources' held-out captions."""

# Not the parameter `batch_size`, which is operational and so must not touch any digit.
_SEQUENCES_TOGETHER = 8


def held_out_losses(
    model: MM1,
    config: EvaluateConfig,
    shards_dir: Path,
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Measures one model on the held-out shards and on the captions of captioning tasks.

    Args:
        model: In evaluation mode.
        config: Number of items, resamples, seed.
        shards_dir: The artifact of the stage `shard`.
        tasks: Those with captions give a set each, under their name.
        tokenizer: Encodes the tasks' captions.

    Returns:
        {"streams": {KIND: {"loss", "n_tokens"}}, "sources": {SOURCE: the same},
        "captions": {SET: see `CaptionLosses.summary`}}. Sets are `validation` over all sources,
        `validation: SOURCE`, and the tasks; one without two different images is left out.
    """
    index = ShardIndex.read(shards_dir)
    sets = _validation_sets(model, config, shards_dir, index)
    for task in tasks:
        if task.config.metric == Metric.CIDER:
            documents = task_captions(task, tokenizer, index, config.max_validation_items)
            _add_set(sets, task.name, caption_losses(model, documents, config.seed))
    return {
        **stream_losses(model, shards_dir, index, config.max_validation_items),
        "captions": {
            name: losses.summary(config.bootstrap_samples, config.seed)
            for name, losses in sets.items()
        },
    }


@torch.inference_mode()
def stream_losses(
    model: MM1, shards_dir: Path, index: ShardIndex, max_sequences: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean loss over the labelled tokens of held-out sequences, by kind and by source.

    Args:
        model: In evaluation mode.
        shards_dir: The artifact of the stage `shard`.
        index: Its `shards.json`.
        max_sequences: The first so many of each source.

    Returns:
        {"streams": {KIND: {"loss", "n_tokens"}}, "sources": {SOURCE: the same}}, without those
        that held nothing out.
    """
    totals: dict[str, dict[str, np.ndarray]] = {
        "streams": defaultdict(lambda: np.zeros(2)),
        "sources": defaultdict(lambda: np.zeros(2)),
    }
    for source, shards in index.sources.items():
        for batch in _held_out_batches(shards_dir, source, max_sequences):
            total = float(token_losses(model, batch).double().sum())
            num_tokens = int((batch["labels"] != IGNORED).sum())
            totals["streams"][shards.kind.value] += (total, num_tokens)
            totals["sources"][source] += (total, num_tokens)
    return {
        group: {
            name: {"loss": round(float(total / count), DIGITS), "n_tokens": int(count)}
            for name, (total, count) in values.items()
            if count
        }
        for group, values in totals.items()
    }


def validation_captions(
    shards_dir: Path, source: str, index: ShardIndex, max_captions: int
) -> list[CaptionDocument]:
    """The first held-out captions of a source, out of its packed sequences."""
    batches = _held_out_batches(shards_dir, source, max_captions)
    documents = (document for batch in batches for document in caption_documents(batch, index))
    return list(islice(documents, max_captions))


def task_captions(
    task: Task, tokenizer: Tokenizer, index: ShardIndex, max_captions: int
) -> list[CaptionDocument]:
    """The first sound items of a captioning task with their first reference as caption."""
    items = (item for item in task.items if item.failure is None)
    return [
        caption_document(task.images[item.image], item.shown_answer(Metric.CIDER), tokenizer, index)
        for item in islice(items, max_captions)
    ]


def _validation_sets(
    model: MM1, config: EvaluateConfig, shards_dir: Path, index: ShardIndex
) -> dict[str, CaptionLosses]:
    """Captions by source; images are shuffled within a source, so that style gives no hint."""
    sets: dict[str, CaptionLosses] = {}
    for source, shards in index.sources.items():
        if shards.kind == RecordKind.CAPTION:
            documents = validation_captions(shards_dir, source, index, config.max_validation_items)
            _add_set(sets, f"{POOLED}: {source}", caption_losses(model, documents, config.seed))
    return {POOLED: CaptionLosses.joined(list(sets.values())), **sets} if sets else {}


def _add_set(sets: dict[str, CaptionLosses], name: str, losses: CaptionLosses | None) -> None:
    if losses is None:
        logger.warning("%s: found no two different images; caption losses are left out", name)
    else:
        sets[name] = losses


def _held_out_batches(
    shards_dir: Path, source: str, max_sequences: int
) -> Iterator[Mapping[str, Any]]:
    left = max_sequences
    for batch in build_validation_loader(shards_dir, source, _SEQUENCES_TOGETHER):
        if left < 1:
            return
        yield split_batch(batch, left)[0]
        left -= _SEQUENCES_TOGETHER
