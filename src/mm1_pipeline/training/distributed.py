"""The processes of one training, and the few things that they say to each other.

A rank is one process with one device. Every rank sees its rows of every global batch; rank 0
alone writes: metrics, checkpoints, what is shown. What is counted or decided is summed over the
ranks first, so that all of them decide the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Where this process stands among the processes of its training."""

    rank: int = 0
    """0 .. size - 1 over all nodes."""
    local_rank: int = 0
    """0 .. local_size - 1 on this node; also the number of its GPU."""
    size: int = 1
    """Processes of the training."""
    local_size: int = 1
    """Processes on this node."""

    @classmethod
    def of_environment(cls) -> World:
        """Reads the variables that a launcher sets: RANK, WORLD_SIZE and their LOCAL_ kin."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            size=size,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(size))),
        )

    @property
    def leads(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0


ALONE = World()
"""A training in one process."""


def check_single_process() -> None:
    """Refuses to start a training inside a launcher.

    Every process would run the whole pipeline and write over the others' artifacts.

    Raises:
        ValueError: when the environment names more than one process.
    """
    if (size := World.of_environment().size) != 1:
        raise ValueError(
            f"Found WORLD_SIZE={size} in the environment, expected 1: every process of a launcher "
            "would run the whole pipeline. Start it without one (torchrun, composer); the stage "
            "starts a process a device itself, as many as its parameter num_processes says."
        )


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sums a tensor over the ranks; in a single process, itself.

    Args:
        values: any numbers, of one shape on all ranks.

    Returns:
        The sum on every rank, on the device of `values`.
    """
    if not _is_together():
        return values
    total = values.detach().to(collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def sum_counts(counts: Sequence[int]) -> list[int]:
    """Sums whole numbers over the ranks."""
    return sum_over_ranks(torch.tensor(counts, dtype=torch.int64)).tolist()


def share(value: T) -> T:
    """What rank 0 has, on every rank. Small plain values only: they are pickled."""
    if not _is_together():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """What every rank has, by rank. Small plain values only: they are pickled."""
    if not _is_together():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def once_a_node(world: World, action: Callable[[], object]) -> None:
    """Runs something on one process of every node; an error there is raised on all ranks.

    Raises:
        ValueError: the first error of any node, in rank order.
    """
    problem = None
    if world.local_rank == 0:
        try:
            action()
        except Exception as error:  # handed to the others, who would wait for ever otherwise
            problem = str(error) or type(error).__name__
    first = next((text for text in gather(problem) if text is not None), None)
    if first is not None:
        raise ValueError(first)


def collective_device() -> torch.device:
    """Where tensors must lie that the ranks exchange."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _is_together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
