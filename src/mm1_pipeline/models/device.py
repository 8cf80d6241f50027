"""Which device there is, and whether this build of PyTorch has kernels for it."""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import version

_TARGET = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
_NEEDED_CUDA = {(10, 0): "12.8", (10, 3): "12.9", (11, 0): "13.0", (12, 0): "12.8", (12, 1): "12.9"}
"""First CUDA version whose compiler knows a compute capability, of those above 9.0."""
_DROPPED_BY_CUDA_13 = (7, 5)
"""Lowest compute capability for which CUDA 13 compiles."""


def usable_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Resolves `auto`, and refuses a GPU that no kernel could run on.

    Raises:
        ValueError: no GPU where one is asked for, or one that this build of PyTorch was not made
            for; it would fail at the first kernel.
    """
    if wanted == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        if wanted == "cuda":
            raise ValueError("device: found cuda, but PyTorch sees no GPU, expected cpu or auto.")
        return "cpu"
    if version.hip is None:
        for number in range(torch.cuda.device_count()):
            _check_kernels(number)
    return "cuda"


def _check_kernels(number: int) -> None:
    capability, targets = torch.cuda.get_device_capability(number), torch.cuda.get_arch_list()
    if not targets or any(_runs_on(target, capability) for target in targets):
        return
    if capability < _DROPPED_BY_CUDA_13 and str(version.cuda).startswith("13."):
        needed = "for CUDA 12.6 (13 has left out this GPU), such as `make setup STACK=pinned` takes"
    else:
        cuda = _NEEDED_CUDA.get(capability)
        since = f"for CUDA {cuda} or later" if cuda else "with kernels for it"
        needed = f"{since}, such as `make setup STACK=newest` takes"
    raise ValueError(
        f"device: found {torch.cuda.get_device_name(number)} of compute capability "
        f"{capability[0]}.{capability[1]}, for which this PyTorch ({torch.__version__}, CUDA "
        f"{version.cuda}) has no kernels (it has {', '.join(targets)}). Install a build "
        f"{needed}, hide the GPU (CUDA_VISIBLE_DEVICES), or set device: cpu."
    )


def _runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Whether what was compiled for a target runs on a GPU.

    Machine code (sm_) runs within its generation from its own minor version on, and of the kind
    `sm_90a` on that version only; code in between (compute_) is compiled on any later one.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        return True  # a kind of target that is not known here: nothing is refused for it
    kind, major, minor, special = match[1], int(match[2]), int(match[3]), match[4]
    if special == "a":
        return (major, minor) == capability
    if kind == "compute" and not special:
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]
