"""AdaFactor: Adam's idea with the memory of a row and a column for each matrix.

torch's own version always multiplies a step by the size of the weights, so that no learning
rate means what AdamW's does; here that is an option. With it on the two agree (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from mm1_pipeline.config.training import AdafactorConfig

_TINY = 1e-30
"""Added to squared gradients, so that a row of zeros has a root."""
_SMALLEST_SCALE = 1e-3
"""Size that weights are at least taken to have where steps are scaled by it."""


class Adafactor(Optimizer):
    """Adaptive steps from factored second moments, without momentum.

    Of a tensor of two or more dimensions, the squared gradients' means over the last and over
    the last but one dimension are kept, and their product stands for the second moment; of a
    vector all are kept.

    Source: MM1, SFT; Shazeer and Stern (2018).

    Args:
        groups: parameter groups, each with a `weight_decay` in units of the learning rate.
        lr: the peak learning rate.
        config: decay, clipping, scaling.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, config: AdafactorConfig) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self._config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step; a closure is called first, as torch's optimizers do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])
        return loss

    def _update(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        config, state, gradient = self._config, self.state[parameter], parameter.grad
        assert gradient is not None
        gradient = gradient.float()
        if not state:
            state["step"] = torch.tensor(0.0)
            _initialize(state, gradient)
        state["step"] += 1
        share = state["step"].item() ** -config.decay_exponent
        update = gradient * _inverse_root(state, gradient.square() + _TINY, share)
        size = _root_mean_square(update)
        update /= torch.clamp(size / config.clipping_threshold, min=1.0)
        step = lr
        if config.scale_by_parameter:
            step = lr * torch.clamp(_root_mean_square(parameter.float()), min=_SMALLEST_SCALE)
        if weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        parameter.sub_((step * update).to(parameter.dtype))


def _initialize(state: dict[str, Any], gradient: Tensor) -> None:
    if gradient.ndim >= 2:
        state["rows"] = torch.zeros_like(_mean(gradient, -1))
        state["columns"] = torch.zeros_like(_mean(gradient, -2))
    else:
        state["squares"] = torch.zeros_like(gradient)


def _inverse_root(state: dict[str, Any], squares: Tensor, share: float) -> Tensor:
    """1 / sqrt(second moment), after these squared gradients joined it by `share`."""
    if "squares" in state:
        return state["squares"].lerp_(squares, share).rsqrt()
    rows = state["rows"].lerp_(_mean(squares, -1), share)
    columns = state["columns"].lerp_(_mean(squares, -2), share)
    return (rows / _mean(rows, -2)).rsqrt() * columns.rsqrt()


def _mean(tensor: Tensor, dim: int) -> Tensor:
    """Mean over a dimension, which is kept; of a sharded tensor, over all of its shards.

    PyTorch takes the mean of the shards' means, which gloo refuses and uneven shards make wrong.
    """
    if not isinstance(tensor, DTensor):
        return tensor.mean(dim=dim, keepdim=True)
    return _reduced(tensor.sum(dim=dim, keepdim=True)) / tensor.shape[dim]


def _root_mean_square(tensor: Tensor) -> Tensor:
    return _reduced(tensor.norm(2)) / math.sqrt(tensor.numel())


def _reduced(tensor: Tensor) -> Tensor:
    """Adds up what the ranks of a sharded tensor have each a part of."""
    if not isinstance(tensor, DTensor):
        return tensor
    whole = [Replicate() if placed.is_partial() else placed for placed in tensor.placements]
    return tensor.redistribute(placements=whole)
