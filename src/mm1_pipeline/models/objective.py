"""What a training minimises: the one contract between models and the training function.

Every stage trains through `training.train.train`; stages differ by their objective. An
objective is a plain module that owns the weights, reads a packed batch as
`streams.collation.collate` makes it, and gives a loss for everything in it that is predicted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mm1_pipeline.config.shard import PackingConfig

Batch = Mapping[str, Any]
"""What `collate` makes, with the batch's `step` (int, from 0) added by the training loop."""


class Term(NamedTuple):
    """A number beside the losses: added to what is minimised, or only logged."""

    value: Tensor
    """float32[], or of any shape if it is only logged; of the (micro)batch. What is logged is
    the mean over microbatches, each weighted by its number of targets."""
    coefficient: float
    """Factor with which the value joins the loss; 0 only logs it."""


def add_terms(loss: Tensor, terms: Mapping[str, Term]) -> Tensor:
    """Loss and terms together; the very loss if no term joins it.

    Args:
        loss: float32[].
        terms: those without a coefficient are left out.
    """
    for term in terms.values():
        if term.coefficient:
            loss = loss + term.coefficient * term.value
    return loss


class ObjectiveOutput(NamedTuple):
    """Losses of a (micro)batch of B sequences."""

    losses: Tensor
    """float32[B, ...]; the first axis is the sequence, so that losses can be told by stream."""
    weights: Tensor
    """bool or number, shaped as `losses`: how many targets each loss stands for; losses are 0
    where it is 0. What is minimised is sum(losses) / sum(weights) over the global batch."""
    terms: Mapping[str, Term] = {}
    """By name, as written to training_<stage>.jsonl."""


class ShardNeeds(NamedTuple):
    """What the shards of a training have to agree with; None where anything will do."""

    vocab_size: int | None = None
    """Rows of the token embeddings: at least as many as the tokenizer has tokens."""
    image_size: int | None = None
    """Pixels of a side that the encoder was made for."""
    image_tokens: int | None = None
    """Image tokens that the connector gives for one image."""


class Objective(nn.Module, ABC):
    """A module that is trained.

    Attributes:
        compares_batch: the loss of an example depends on the others of the batch, so that the
            batch of a rank cannot be cut into microbatches.
    """

    compares_batch: bool = False

    @property
    @abstractmethod
    def config(self) -> Any:
        """Parameter group that fixes the shape of all weights and the loss."""

    @abstractmethod
    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Losses of a (micro)batch, on the device of the weights."""

    @abstractmethod
    def count_targets(self, batch: Batch) -> int:
        """The sum of the weights that `forward` will give, counted on the CPU.

        It weights microbatches and ranks; counted there, a GPU need not be waited for.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Writes the artifact that the stage hands on; equal weights give equal bytes."""

    @property
    @abstractmethod
    def needs(self) -> ShardNeeds:
        """What the shards have to agree with."""

    def count_flops(self, batch: Batch) -> int | None:
        """Floating-point operations of a training step on a batch, counted on the CPU.

        Forward and backward pass, without what is computed a second time to save memory.

        Returns:
            None where nobody has counted them.
        """
        del batch
        return None

    def activation_bytes(
        self, num_sequences: int, packing: PackingConfig, *, in_bfloat16: bool
    ) -> int | None:
        """What the backward pass keeps of sequences that are as full as they can be.

        Args:
            num_sequences: Of the microbatch.
            packing: Positions and images of a sequence.
            in_bfloat16: Whether autocast keeps most of it in 2 bytes a number, else 4.

        Returns:
            None where nobody has counted it.
        """
        del num_sequences, packing, in_bfloat16
        return None

    @property
    def law_parameters(self) -> int | None:
        """N of the learning-rate law; None where the law does not hold."""
        return None
