"""Which device a training uses, how many of them, and what they can do at most."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from mm1_pipeline.config.shard import PackingConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.ground.devices import device_limits
from mm1_pipeline.ground.formatting import compact, nearest
from mm1_pipeline.models.device import usable_device
from mm1_pipeline.models.memory import USABLE_SHARE, largest_microbatch, state_bytes
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.training.nodes import num_nodes

logger = logging.getLogger(__name__)


def choose_device(config: TrainingConfig) -> Literal["cpu", "cuda"]:
    """Resolves `auto`, refuses what the machine cannot do and warns of what it does slowly.

    Returns:
        `cpu` or `cuda`.

    Raises:
        ValueError: no GPU where one is asked for, or one without kernels in this PyTorch.
    """
    device = usable_device(config.device)
    if config.precision == "bfloat16" and device == "cpu" and not _cpu_has_bfloat16():
        logger.warning(
            "precision: found bfloat16 on a CPU that has no instructions for it; float32 would be "
            "faster."
        )
    return device


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; False where PyTorch cannot tell."""
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in questions)


def choose_num_processes(config: TrainingConfig, device: str) -> int:
    """How many processes this node starts.

    Args:
        config: `num_processes`, and the batch that they share.
        device: from `choose_device`.

    Returns:
        At least 1; over all nodes they divide the global batch.

    Raises:
        ValueError: more processes than GPUs, or the processes do not divide the batch.
    """
    nodes, num_gpus = num_nodes(), torch.cuda.device_count() if device == "cuda" else 0
    batch, wanted = config.global_batch_size, config.num_processes
    possible = [count for count in range(1, batch + 1) if batch % (count * nodes) == 0]
    if wanted is None:
        fitting = [count for count in possible if count <= max(1, num_gpus)]
        chosen = max(fitting, default=1)
        if chosen < num_gpus:
            logger.warning(
                "Training on %d of %d GPUs: no larger number divides the global batch of %d.",
                chosen,
                num_gpus,
                batch,
            )
        return chosen
    if device == "cuda" and wanted > num_gpus:
        raise ValueError(
            f"num_processes: found {wanted}, expected at most {num_gpus}, the GPUs that PyTorch "
            "sees: a process needs one of its own."
        )
    if wanted not in possible:
        raise ValueError(
            f"num_processes: found {wanted} on {nodes} node(s), expected a number that divides the "
            f"global batch of {batch}; nearest possible: {nearest(possible, wanted)}."
        )
    return wanted


def choose_microbatch_size(
    config: TrainingConfig,
    objective: Objective,
    packing: PackingConfig,
    *,
    device: str,
    num_ranks: int,
) -> int | None:
    """Sequences in one forward pass.

    Args:
        config: `microbatch_size` is taken if it is given.
        objective: What is trained; its weights lie sharded over the ranks.
        packing: Positions and images of a sequence.
        device: From `choose_device`. A CPU takes the whole batch of a rank.
        num_ranks: Over all nodes.

    Returns:
        On a GPU as many as its memory holds by `models.memory`; None takes the whole batch.

    Raises:
        ValueError: Not even one sequence fits.
    """
    if config.microbatch_size or device != "cuda" or objective.compares_batch:
        return config.microbatch_size
    is_bfloat16 = config.precision == "bfloat16"
    one = objective.activation_bytes(1, packing, in_bfloat16=is_bfloat16)
    if one is None:
        return None

    def activations(num_sequences: int) -> int:
        kept = objective.activation_bytes(num_sequences, packing, in_bfloat16=is_bfloat16)
        assert kept is not None, objective
        return kept

    rows = config.global_batch_size // num_ranks
    memory = torch.cuda.get_device_properties(0).total_memory
    num_parameters = sum(weight.numel() for weight in objective.parameters())
    states = state_bytes(num_parameters, config.optimizer.kind) / num_ranks
    chosen = largest_microbatch(rows, activations, USABLE_SHARE * memory - states)
    if chosen is None:
        raise ValueError(
            f"microbatch_size: found {compact(states + one)} bytes for weights, "
            f"gradients, optimizer and one sequence on each of {num_ranks} GPUs, expected at most "
            f"{USABLE_SHARE:.0%} of {compact(memory)}: more GPUs share the weights, "
            "model.gradient_checkpointing and bfloat16 save activations, and `kedro mm1 plan` "
            "shows each. If you know better, set microbatch_size: 1."
        )
    if chosen < rows:
        logger.info("Each rank takes its %d sequences %d at a time.", rows, chosen)
    return chosen


def peak_flops(device: str, precision: str) -> float | None:
    """Most operations a second of one device, the denominator of MFU.

    Args:
        device: `cpu` or `cuda`.
        precision: of the matrix products; only bfloat16 has a table.

    Returns:
        None where it is not known: on a CPU, in float32, on a GPU outside the table.
    """
    if device != "cuda" or precision != "bfloat16":
        return None
    limits = device_limits(torch.cuda.get_device_name())
    return None if limits is None else limits.peak_bfloat16
