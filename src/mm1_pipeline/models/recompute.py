"""Trading time for memory: activations that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def run_step(step: Callable[..., T], *args: Any, recompute: bool) -> T:
    """Calls a layer or function; with `recompute`, the backward pass starts from its inputs.

    Nothing here draws random numbers, so the random state is not kept either.
    """
    if recompute and torch.is_grad_enabled():
        result = checkpoint(step, *args, use_reentrant=False, preserve_rng_state=False)
        return cast(T, result)
    return step(*args)
