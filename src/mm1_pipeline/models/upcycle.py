"""Sparse upcycling: a dense checkpoint becomes a mixture of experts, tensor by tensor.

Every n-th feed-forward layer becomes E copies of itself and a new router. With weights of the
chosen experts that sum to 1, equal experts compute what the dense layer did, whatever the router
says: training starts from the dense model's loss.

Nothing is ever held but the tensor that is being written, so that a decoder whose experts fill
the memory of eight machines can be made on one. Shape letters: E experts, F hidden units, D width.

Source: MM1, Mixture of experts; that experts start as copies is our choice (Komatsuzaki et al.
2022, arXiv 2212.05055).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mm1_pipeline.config.model import MM1Config, MoEConfig
from mm1_pipeline.models.checkpoint import WEIGHTS, read_model_config, write_model_config
from mm1_pipeline.models.initialization import generator_of
from mm1_pipeline.models.safetensors_files import TensorSlot, WeightFiles, write_safetensors

_FEED_FORWARD = re.compile(r"decoder\.layers\.(\d+)\.feed_forward\.(gate|up|down)\.weight")


@dataclass(frozen=True, slots=True)
class Upcycling:
    """How copies differ from the dense layer.

    Attributes:
        moe: Experts, layers, router.
        seed: Of everything that is drawn.
        expert_noise: Standard deviation of what is added, in units of the matrix's own.
        drop_fraction: Share of each expert's hidden units that are drawn anew.
    """

    moe: MoEConfig
    seed: int
    expert_noise: float = 0.0
    drop_fraction: float = 0.0


def upcycle_checkpoint(source: Path, output: Path, upcycling: Upcycling) -> MM1Config:
    """Makes a mixture-of-experts checkpoint out of a dense one.

    Args:
        source: Folder that `save_model` wrote.
        output: Gets the same two files.
        upcycling: What is made.

    Returns:
        The shape of the new model.

    Raises:
        ValueError: The model is a mixture of experts already, or its layers do not fit.
    """
    config, image_token_id = read_model_config(source)
    if config.decoder.moe is not None:
        raise ValueError(
            f"{source}: found a mixture of experts already, expected a dense model. Name the "
            "checkpoint of pretrain."
        )
    if upcycling.moe.shared_d_ff is not None:
        raise ValueError(
            f"upcycle.moe.shared_d_ff: found {upcycling.moe.shared_d_ff}, expected none: a dense "
            "model has no weights for an expert that computes every position."
        )
    decoder = dataclasses.replace(config.decoder, moe=upcycling.moe)
    upcycled = dataclasses.replace(config, decoder=decoder)
    dense = WeightFiles(source / WEIGHTS)
    slots: list[TensorSlot] = []
    for name in sorted(dense.names):
        found = _FEED_FORWARD.fullmatch(name)
        if found and decoder.has_experts(int(found[1])):
            slots += _expert_slots(dense, int(found[1]), found[2], upcycling)
        else:
            slots.append(_copied(dense, name))
    output.mkdir(parents=True, exist_ok=True)
    write_safetensors(output / WEIGHTS, slots)
    write_model_config(upcycled, image_token_id, output)
    return upcycled


def _copied(dense: WeightFiles, name: str) -> TensorSlot:
    shape, dtype = tuple(dense.shape(name)), dense.dtype(name)
    return TensorSlot(name, shape, dtype, lambda: iter([dense.stored(name)]))


def _expert_slots(
    dense: WeightFiles, layer: int, matrix: str, upcycling: Upcycling
) -> list[TensorSlot]:
    """The stacked experts of one matrix and, beside the first, the router."""
    prefix = f"decoder.layers.{layer}.feed_forward"
    source, target = f"{prefix}.{matrix}.weight", f"{prefix}.experts.{matrix}"
    num_experts = upcycling.moe.num_experts
    shape = dense.shape(source)

    def experts() -> Iterator[Tensor]:
        weight = dense.stored(source)
        for expert in range(num_experts):
            yield _make_expert(weight, prefix, matrix, expert, upcycling)

    slots = [TensorSlot(target, (num_experts, *shape), dense.dtype(source), experts)]
    if matrix == "gate":
        slots.append(_router_slot(f"{prefix}.router.weight", num_experts, shape[1], upcycling))
    return slots


def _router_slot(name: str, num_experts: int, d_model: int, upcycling: Upcycling) -> TensorSlot:
    """As a new model's router: logits of about 1, so that no expert gets all positions."""

    def draw() -> Iterator[Tensor]:
        values = torch.randn(num_experts, d_model, generator=generator_of(upcycling.seed, name))
        yield values * d_model**-0.5

    return TensorSlot(name, (num_experts, d_model), "F32", draw)


def _make_expert(
    weight: Tensor, prefix: str, matrix: str, expert: int, upcycling: Upcycling
) -> Tensor:
    """One expert's copy of a matrix [F, D], or of `down` [D, F]."""
    if not upcycling.expert_noise and not upcycling.drop_fraction:
        return weight
    made = weight.float().clone()
    generator = generator_of(upcycling.seed, f"{prefix}.experts.{matrix}.{expert}")
    if upcycling.drop_fraction:
        units = _dropped_units(weight, prefix, matrix, expert, upcycling)
        axis = 1 if matrix == "down" else 0
        chosen = made.index_select(axis, units)
        drawn = torch.randn(chosen.shape, generator=generator)
        made.index_copy_(axis, units, drawn * chosen.std() + chosen.mean())
    if upcycling.expert_noise:
        noise = torch.randn(made.shape, generator=generator)
        made += upcycling.expert_noise * weight.float().std() * noise
    return made.to(weight.dtype)


def _dropped_units(
    weight: Tensor, prefix: str, matrix: str, expert: int, upcycling: Upcycling
) -> Tensor:
    """Hidden units that an expert learns anew: the same in its three matrices."""
    num_units = weight.shape[1] if matrix == "down" else weight.shape[0]
    order = torch.randperm(
        num_units, generator=generator_of(upcycling.seed, f"{prefix}.experts.{expert}.units")
    )
    return order[: round(upcycling.drop_fraction * num_units)].sort().values
