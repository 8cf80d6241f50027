"""Cross-entropy of next tokens, computed only where a token is to be predicted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mm1_pipeline.models.recompute import run_step
from mm1_pipeline.models.rows import take_rows

IGNORED = -100
"""Label of a position that predicts nothing."""

_CHUNK_LOGITS = 1 << 22
"""Logits computed at once (16 MB in float32). Our choice, measured: larger blocks leave the
processor's caches, smaller ones leave matrix products inefficient."""

_MAX_KEPT_LOGITS = 1 << 26
"""Logits kept for the backward pass (256 MB in float32); more are computed again, a chunk at a
time, which costs a third more. Our choice."""


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at every labelled position.

    In a packed batch of captions under half of the positions have a label (image tokens have
    none), and the vocabulary is wide: logits of the others would be a large part of all work.

    Args:
        hidden: float[P, D], after the final norm.
        weight: float[V, D], the vocabulary's rows.
        labels: int64[P]; the token to predict, or -100.

    Returns:
        float32[P], 0 where the label is -100.
    """
    rows = (labels != IGNORED).nonzero().squeeze(1)
    losses = labelled_losses(take_rows(hidden, rows), weight, labels.index_select(0, rows))
    return losses.new_zeros(len(labels)).index_copy(0, rows, losses)


def token_losses_and_z(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log(sum(exp(logits)))^2 at every labelled position.

    Args:
        hidden: see `token_losses`, as are the others.
        weight: float[V, D].
        labels: int64[P].

    Returns:
        Two of float32[P], 0 where the label is -100.
    """
    rows = (labels != IGNORED).nonzero().squeeze(1)
    both = labelled_losses(
        take_rows(hidden, rows), weight, labels.index_select(0, rows), with_z=True
    )
    placed = both.new_zeros(len(labels), 2).index_copy(0, rows, both)
    return placed[:, 0], placed[:, 1]


def documents_with_labels(labels: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Positions of documents in which something is predicted: all but padding.

    Args:
        labels: int64[P]; -100 where nothing is predicted.
        cu_seqlens: int32[num_documents + 1], borders of the documents. Padding at a row's end
            is a document of its own.

    Returns:
        bool[P].
    """
    borders = cu_seqlens.long()
    labels_before = F.pad((labels != IGNORED).cumsum(0), (1, 0))[borders]
    return (labels_before.diff() > 0).repeat_interleave(borders.diff(), output_size=len(labels))


def labelled_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    with_z: bool = False,
    chunk_logits: int = _CHUNK_LOGITS,
    max_kept_logits: int = _MAX_KEPT_LOGITS,
) -> Tensor:
    """Cross-entropy where every position has a label; the logits never exist as a whole.

    Args:
        hidden: float[M, D].
        weight: float[V, D].
        labels: int64[M].
        with_z: adds a second column, log(sum(exp(logits)))^2.
        chunk_logits: logits that are computed at once (at least one position's).
        max_kept_logits: logits that may be kept for the backward pass.

    Returns:
        float32[M], or float32[M, 2] with z.
    """
    term = _cross_entropy_and_z if with_z else _cross_entropy
    chunk = max(1, chunk_logits // len(weight))
    recompute = len(labels) * len(weight) > max_kept_logits
    losses = [
        run_step(term, *part, weight, recompute=recompute)
        for part in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    return torch.cat(losses)


def _cross_entropy(hidden: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")


def _cross_entropy_and_z(hidden: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    log_partition = logits.logsumexp(dim=-1)
    chosen = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return torch.stack([log_partition - chosen, log_partition.square()], dim=1)
