"""MM1 and its batches in the shape that Composer's loop expects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.collation import split_batch
from mm1_pipeline.training.composer_api import ComposerModel, DataSpec

Batch = dict[str, Any]

_NUM_LABELS = "num_labels"


class TrainableMM1(ComposerModel):
    """Wraps a model; the loss is the mean over all label positions of the global batch.

    Args:
        model: stays a plain module, which `state_dict` names under `model.`.
    """

    def __init__(self, model: MM1) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Losses of every position.

        Returns:
            float32[B, T], 0 where there is no label.
        """
        return self.model.token_losses(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            cu_seqlens=batch["cu_seqlens"],
            pixel_values=batch["pixel_values"],
            labels=batch["labels"],
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean over the label positions of a microbatch.

        Composer weights it by the microbatch's share of the batch's labels (see
        `data_spec`), so the gradient is that of the mean over the whole batch, whatever the
        size of a microbatch.
        """
        return outputs.sum() / max(1, batch[_NUM_LABELS])


def count_labels(batch: Batch) -> Batch:
    """Notes in a batch how many positions have a label, while it is on the CPU.

    Counted there, the GPU need not be waited for.
    """
    return {**batch, _NUM_LABELS: int((batch["labels"] != -100).sum())}


def prepare(batch: Batch) -> Batch:
    """Counts the labels of a whole batch and refuses one without any.

    Raises:
        ValueError: there is nothing to learn from, and no mean to take.
    """
    counted = count_labels(batch)
    if counted[_NUM_LABELS] == 0:
        raise ValueError(
            f"Found no label in a batch ({'; '.join(batch['sample_keys'])}), expected at least "
            "one position to predict. The shards' loss_mask is empty there; make them again."
        )
    return counted


def data_spec(loader: Iterable[Batch]) -> DataSpec:
    """Tells Composer how to count and split batches.

    Composer's "tokens" are label positions, here and in its timestamps: they weight the
    microbatches.

    Args:
        loader: yields what `streams.collation.collate` makes.
    """
    return DataSpec(
        loader,
        batch_transforms=prepare,
        split_batch=split,
        get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
        get_num_tokens_in_batch=lambda batch: batch[_NUM_LABELS],
    )


def split(batch: Batch, microbatch_size: int | float) -> Sequence[Batch]:
    """Cuts a batch into microbatches that know their numbers of labels.

    Args:
        batch: a whole batch on the CPU.
        microbatch_size: sequences in each but perhaps the last.
    """
    assert isinstance(microbatch_size, int), "microbatches are whole sequences"
    if microbatch_size >= len(batch["input_ids"]):
        return [batch]
    return [count_labels(part) for part in split_batch(batch, microbatch_size)]
