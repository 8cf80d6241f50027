"""Trading time for memory: activations that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_step(step: Callable[..., Tensor], *args: Any, recompute: bool) -> Tensor:
    """Calls a layer or function; with `recompute`, the backward pass starts from its inputs.

    Nothing here draws random numbers, so the random state is not kept either.
    """
    if recompute and torch.is_grad_enabled():
        result = checkpoint(step, *args, use_reentrant=False, preserve_rng_state=False)
        return cast(Tensor, result)
    return step(*args)
