"""The processes of one training, and the few things that they say to each other.

A rank is one process with one device. Every rank sees its rows of every global batch; rank 0
alone writes: metrics, checkpoints, what is shown. What is counted or decided is summed over the
ranks first, so that all of them decide the same.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from mm1_pipeline.training.plain_objects import send_plain_objects_only

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


def begin_together(world: World, backend: str, store: Store, *, timeout_seconds: float) -> None:
    """Joins the ranks; from here on, nothing that another rank sends is unpickled.

    Args:
        world: this process among the others.
        backend: `gloo` or `nccl`.
        store: where the ranks meet.
        timeout_seconds: longest wait for another rank in a collective.
    """
    send_plain_objects_only()
    dist.init_process_group(
        backend,
        store=PrefixStore("training", store),
        rank=world.rank,
        world_size=world.size,
        timeout=datetime.timedelta(seconds=timeout_seconds),
    )


def share(value: T) -> T:
    """What rank 0 has, on every rank: a JSON value (None, numbers, texts, lists, dicts of texts).

    It travels as JSON in tensors, not through the object collectives of torch, which unpickle what
    comes from the other ranks.
    """
    if not _is_together():
        return value
    data = _as_bytes(value if dist.get_rank() == 0 else None)
    size = torch.tensor([len(data)], device=collective_device())
    dist.broadcast(size, src=0)
    if dist.get_rank() != 0:
        data = torch.empty(int(size.item()), dtype=torch.uint8, device=collective_device())
    dist.broadcast(data, src=0)
    return _of_bytes(data)


def gather(value: T) -> list[T]:
    """What every rank has, by rank: JSON values, which travel as in `share`."""
    if not _is_together():
        return [value]
    data = _as_bytes(value)
    sizes = [torch.zeros(1, dtype=torch.int64, device=data.device) for _ in _ranks()]
    dist.all_gather(sizes, torch.tensor([len(data)], device=data.device))
    lengths = [int(size.item()) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=data.device)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [_of_bytes(part[:length]) for part, length in zip(parts, lengths, strict=True)]


def _ranks() -> range:
    return range(dist.get_world_size())


def _as_bytes(value: Any) -> Tensor:
    text = json.dumps(value).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(collective_device())


def _of_bytes(data: Tensor) -> Any:
    return json.loads(data.cpu().numpy().tobytes())


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
