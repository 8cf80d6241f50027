"""An objective and its batches in the shape that a training loop expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mm1_pipeline.models.objective import Objective, ObjectiveOutput, add_terms
from mm1_pipeline.streams.collation import split_batch
from mm1_pipeline.training.distributed import sum_counts

Batch = dict[str, Any]

NUM_TARGETS = "num_targets"
"""Key of a batch under which its targets are counted."""
STEP = "step"
"""Key of a batch under which its optimizer step stands, from 0."""


class TrainableObjective:
    """An objective with its loss: the mean over all targets of the global batch.

    Args:
        objective: stays a plain module.
        loss_factor: see `sharding.loss_factor`.
        autocast: device whose matrix products are made in bfloat16; None casts nothing.
    """

    def __init__(
        self, objective: Objective, *, loss_factor: float = 1.0, autocast: str | None = None
    ) -> None:
        self.objective = objective
        self._loss_factor = loss_factor
        self._autocast = autocast

    def __call__(self, batch: Batch) -> ObjectiveOutput:
        """Losses of everything that a microbatch predicts."""
        with torch.autocast(self._autocast or "cpu", torch.bfloat16, enabled=bool(self._autocast)):
            return self.objective(batch)

    def loss(self, outputs: ObjectiveOutput, batch: Batch) -> Tensor:
        """Mean over the targets of a microbatch, and the terms that join it.

        The loop weights it by the microbatch's share of the batch's targets, so the gradient is
        that of the mean over the whole batch, whatever the size of a microbatch. A term of a
        microbatch is its own: an MoE's load balance is that of each microbatch, as a mean of
        products is not the product of means.
        """
        mean = outputs.losses.sum() / max(1, batch[NUM_TARGETS])
        total = add_terms(mean, outputs.terms)
        return total if self._loss_factor == 1.0 else total * self._loss_factor


def prepare(batch: Batch, objective: Objective) -> Batch:
    """Counts the targets of a whole batch and refuses one in which no rank has any.

    Raises:
        ValueError: there is nothing to learn from, and no mean to take.
    """
    counted = _count(batch, objective)
    # A rank may have none, as one that drew only images has no pair or token to predict.
    if sum_counts([counted[NUM_TARGETS]]) == [0]:
        raise ValueError(
            f"Found no target in a batch ({'; '.join(batch['sample_keys'])}), expected at least "
            "one thing to predict: a labelled position, or for an encoder an image (with a text "
            "to compare). Give the stage a mixture that has some, or mend the shards."
        )
    return counted


def split(batch: Batch, microbatch_size: int, objective: Objective) -> Sequence[Batch]:
    """Cuts a batch into microbatches that know their numbers of targets.

    Args:
        batch: a whole batch.
        microbatch_size: sequences in each but perhaps the last.
        objective: counts the targets.
    """
    if microbatch_size >= len(batch["input_ids"]):
        return [batch]
    of_step = {STEP: batch[STEP]} if STEP in batch else {}
    return [_count({**part, **of_step}, objective) for part in split_batch(batch, microbatch_size)]


def _count(batch: Batch, objective: Objective) -> Batch:
    return {**batch, NUM_TARGETS: objective.count_targets(batch)}
