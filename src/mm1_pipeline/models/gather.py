"""Rows of all ranks together, with gradients that find their way back."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """Rows of all ranks, in the order of the ranks."""

    rows: Tensor
    """float or int[sum of M over ranks, ...]."""
    first: int
    """Place of this rank's first row."""


def num_ranks() -> int:
    """How many ranks compute together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Gathered:
    """Joins the rows of all ranks; ranks may have different numbers of them, or none.

    The gradient of a row is the sum of what every rank's loss asks of it. Averaged over ranks,
    as data-parallel training does with the weights' gradients, the result is the gradient of
    the mean of all ranks' losses. Without a process group the rows are returned as they are.

    Args:
        rows: float or int[M, ...]; the same trailing shape and dtype on all ranks.

    Returns:
        All rows and where this rank's begin.
    """
    if num_ranks() == 1:
        return Gathered(rows, 0)
    counts = _counts(rows)
    first = sum(counts[: dist.get_rank()])
    if rows.is_floating_point():
        return Gathered(cast(Tensor, _GatherRows.apply(rows, counts, first)), first)
    return Gathered(_gather(rows, counts), first)


def _counts(rows: Tensor) -> list[int]:
    own = torch.tensor([len(rows)], device=rows.device)
    all_counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_counts, own)
    return [int(count) for count in torch.cat(all_counts)]


def _gather(rows: Tensor, counts: list[int]) -> Tensor:
    """Pads to the longest, as all_gather wants equal shapes, and takes the pads out again."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], first: int) -> Tensor:
        ctx.place = slice(first, first + len(rows))
        return _gather(rows.detach(), counts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad_outputs[0].contiguous()
        dist.all_reduce(grad)
        return grad[ctx.place], None, None
