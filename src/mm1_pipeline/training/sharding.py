"""Weights and optimizer state split over the ranks, and put together again.

Sharding is PyTorch's FSDP2: every weight becomes a DTensor, of which a rank holds a slice of
the first axis. Composer applies it, or `shard` does; which modules are units of it, whether it took
place and how its state is saved is decided here.

State is saved whole, by name, so that a checkpoint does not know how many ranks wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer

from mm1_pipeline.models.safetensors_files import DTYPES
from mm1_pipeline.training.checkpoints import Checkpoint
from mm1_pipeline.training.distributed import World, collective_device, share

_GROUP_KEYS = ("lr", "initial_lr")
"""What of a parameter group changes in the course of a training."""

_TYPES = {str(dtype): dtype for dtype in DTYPES.values()}


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of all Transformers in a module: the members of every list called `layers`.

    They are the units of sharding: while one is computed, only its weights are whole.
    """
    lists = (
        child
        for name, child in module.named_modules()
        if name.rpartition(".")[2] == "layers" and isinstance(child, nn.ModuleList)
    )
    return [layer for layers in lists for layer in layers]


def shard(objective: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
    """Splits weights over the ranks: each layer is a unit of FSDP2, and the rest is one.

    Its own types stay float32, autocast alone choosing types: the same numbers as in one process.

    Args:
        objective: whole on rank 0; on other ranks it may lie on `meta`.
        optimizer: of its weights, without state; it gets the split ones.
        device: of this rank.
    """
    # Detached: FSDP2 moves the weights themselves, of which a GPU need not hold all.
    named = _weights_and_buffers(objective) if dist.get_rank() == 0 else ()
    whole = {name: tensor.detach() for name, tensor in named}
    old = dict(objective.named_parameters())
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in [*layers_of(objective), objective]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    objective.to_empty(device=device)
    new = dict(objective.named_parameters())
    with torch.no_grad():
        for name, tensor in _weights_and_buffers(objective):
            tensor.copy_(_like(tensor, whole.get(name)))
    moved = {id(weight): new[name] for name, weight in old.items()}
    for group in optimizer.param_groups:
        group["params"] = [moved[id(weight)] for weight in group["params"]]


def _weights_and_buffers(objective: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from objective.named_parameters()
    yield from objective.named_buffers()


def check_sharded(objective: nn.Module, world: World) -> None:
    """Refuses to train on several ranks with weights that are not sharded.

    Composer trains unsharded, without a word, where its options are not the ones it wants.

    Raises:
        RuntimeError: naming weights that every rank would hold whole.
    """
    if world.size == 1:
        return
    whole = [
        name for name, weight in objective.named_parameters() if not isinstance(weight, DTensor)
    ]
    if whole:
        raise RuntimeError(
            f"Found {len(whole)} weights that are not sharded over the {world.size} ranks "
            f"({', '.join(whole[:3])}), expected none. FSDP2 was not applied: this installation "
            "of Composer does not do what the project was tested with (mosaicml 0.32.1). Set "
            "engine: torch, which gives the same losses."
        )


def loss_factor() -> float:
    """What each rank's loss is multiplied with, so that gradients are means over the ranks.

    FSDP2 asks the backend for the mean of the ranks' gradients. PyTorch 2.7's gloo gives the sum,
    without an error; AdamW and clipping hide that from the losses. So it is measured.
    """
    if not dist.is_initialized() or (size := dist.get_world_size()) == 1:
        return 1.0
    device = collective_device()
    mean = torch.zeros(1, device=device)
    dist.reduce_scatter_tensor(mean, torch.ones(size, device=device), dist.ReduceOp.AVG)
    return 1.0 / mean.item()


def state_tensors(objective: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and kept buffers by name, each once though two names may share it."""
    yield from objective.named_parameters()
    kept = objective.state_dict().keys()
    yield from ((name, buffer) for name, buffer in objective.named_buffers() if name in kept)


def gather_state(
    objective: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, float]]]:
    """Weights and optimizer state, whole and by name; every rank has to call it.

    Returns:
        On rank 0 the weights by name, the optimizer's state by `<name>/<key>`, both on the CPU,
        and the learning rates of the parameter groups; on other ranks no tensors.
    """
    model = {name: _whole(tensor) for name, tensor in state_tensors(objective)}
    states = {
        f"{name}/{key}": _whole(value)
        for name, weight in objective.named_parameters()
        if weight in optimizer.state
        for key, value in optimizer.state[weight].items()
    }
    groups = [
        {key: float(group[key]) for key in _GROUP_KEYS if key in group}
        for group in optimizer.param_groups
    ]
    return _present(model), _present(states), groups


def restore_state(
    objective: nn.Module,
    optimizer: Optimizer,
    groups: list[dict[str, float]],
    checkpoint: Checkpoint | None,
) -> None:
    """Puts back what `gather_state` gave; every rank has to call it.

    Args:
        objective: sharded or not; may have another number of ranks than the one saved.
        optimizer: of the objective's parameters; its state is replaced.
        groups: learning rates of its parameter groups.
        checkpoint: on rank 0; the others pass None.

    Raises:
        ValueError: the state is not that of these weights.
    """
    described = share(_described(checkpoint) if checkpoint is not None else None)
    assert described is not None, "rank 0 has the checkpoint"
    stored, layouts = (
        {name: _Layout(shape, _TYPES[dtype]) for name, (shape, dtype) in part.items()}
        for part in described
    )
    tensors = dict(state_tensors(objective))
    weights = dict(objective.named_parameters())
    differing = sorted(
        name
        for name in stored.keys() | tensors.keys()
        if name not in stored
        or name not in tensors
        or stored[name].shape != list(tensors[name].shape)
    )
    differing += [path for path in layouts if path.rpartition("/")[0] not in weights]
    if differing or len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"Found a checkpoint of other weights: {', '.join(differing[:3]) or 'their groups'} "
            "differ. Start anew in another work_dir."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(_like(tensor, checkpoint.model[name] if checkpoint else None))
        for path, layout in layouts.items():
            name, _, key = path.rpartition("/")
            value = checkpoint.optimizer[path] if checkpoint else None
            optimizer.state[weights[name]][key] = _beside(weights[name], value, layout)
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: values[key] for key in _GROUP_KEYS if key in values})


class _Layout(NamedTuple):
    """What a rank has to know of a tensor before it is sent."""

    shape: list[int]
    dtype: torch.dtype


def _described(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """What the other ranks have to know of a checkpoint's tensors, as JSON."""
    return [
        {name: [shape, str(dtype)] for name, (shape, dtype) in stored.layouts.items()}
        for stored in (checkpoint.model, checkpoint.optimizer)
    ]


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _whole(value: Tensor) -> Tensor | None:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if not dist.is_initialized() or dist.get_rank() == 0 else None


def _like(target: Tensor, value: Tensor | None) -> Tensor:
    """A tensor laid out as `target`, from the whole one that rank 0 has."""
    if not isinstance(target, DTensor):
        return _everywhere(target, value, _Layout(list(target.shape), target.dtype))
    device = collective_device()
    if value is None:
        value = torch.empty(target.shape, dtype=target.dtype, device=device)
    return distribute_tensor(value.to(device, target.dtype), target.device_mesh, target.placements)


def _beside(weight: Tensor, value: Tensor | None, layout: _Layout) -> Tensor:
    """State of a weight's optimizer: sharded with its rows if it has as many, else whole.

    AdamW's averages have the weight's shape, AdaFactor's its rows or its columns.
    """
    shape = layout.shape
    if not isinstance(weight, DTensor) or not shape:
        return _everywhere(weight, value, layout)
    whole = _to_send(value, layout)
    by_rows = len(shape) == weight.ndim and shape[0] == weight.shape[0]
    placements = weight.placements if by_rows else [Replicate()] * weight.device_mesh.ndim
    return distribute_tensor(whole, weight.device_mesh, placements)


def _everywhere(neighbour: Tensor, value: Tensor | None, layout: _Layout) -> Tensor:
    """A tensor that every rank has whole, on the device of another, from rank 0."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        assert value is not None
        return value.to(neighbour.device, copy=True)
    value = _to_send(value, layout)
    dist.broadcast(value, src=0)
    return value.to(neighbour.device)


def _to_send(value: Tensor | None, layout: _Layout) -> Tensor:
    """Rank 0's tensor where the ranks can exchange it; on the others, room for it."""
    device = collective_device()
    if value is None:
        return torch.empty(layout.shape, dtype=layout.dtype, device=device)
    return value.to(device, layout.dtype, copy=True)  # else the file stays mapped into memory
