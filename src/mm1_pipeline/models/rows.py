"""Moving rows of a tensor, with gradients that are exact gathers.

torch's gradient of `index_select` adds rows into place, one after the other. Where every row is
read once that is a copy, and a copy is faster and has no order that could vary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x, none of them twice.

    Args:
        x: float[N, ...].
        rows: int64[M], all different.

    Returns:
        float[M, ...].
    """
    return cast(Tensor, _TakeRows.apply(x, rows))


def pad_rows(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Rows of x, each of them once, with repetitions between them as pads.

    The gradient of a pad is dropped, so nothing that counts may depend on it.

    Args:
        x: float[N, ...].
        rows: int64[M]; row of x that each row of the result repeats.
        places: int64[N]; row of the result that counts as each row of x.

    Returns:
        float[M, ...].
    """
    return cast(Tensor, _PadRows.apply(x, rows, places))


def repeat_rows(x: Tensor, order: Tensor, places: Tensor, times: int) -> Tensor:
    """Every row of x the same number of times, in any order.

    Args:
        x: float[N, ...].
        order: int64[N * times], all different; number i stands for row i // times.
        places: int64[N * times], the inverse of `order`.
        times: copies of each row, from 1.

    Returns:
        float[N * times, ...].
    """
    return cast(Tensor, _RepeatRows.apply(x, order, places, times))


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, rows, grad), None


class _PadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _RepeatRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.times = times
        return x.index_select(0, order // times)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        (places,) = ctx.saved_tensors
        copies = grad.index_select(0, places).unflatten(0, (-1, ctx.times))
        return copies.sum(1), None, None, None
