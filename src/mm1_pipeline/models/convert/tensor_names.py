"""What the tensors of a decoder are called in the families of Hugging Face.

One table of names serves both ways, into this project's decoder and out of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from mm1_pipeline.config.model import DecoderConfig, NormOrder, QKNorm
from mm1_pipeline.models.convert.accounting import Reason
from mm1_pipeline.models.convert.families import Family


class Join(StrEnum):
    """How several of their tensors make one of ours."""

    CONCATENATE = "concatenate"
    """Along the rows: queries, keys, values."""
    STACK = "stack"
    """Along a new axis in front: experts."""


class Entry(NamedTuple):
    """One tensor of a `Decoder`, and the tensors of a family that hold the same numbers."""

    ours: str
    theirs: tuple[str, ...]
    join: Join = Join.CONCATENATE
    half: int | None = None
    """Which half of the rows is ours: 0 or 1; None takes all."""
    change: Callable[[Tensor], Tensor] | None = None
    """What is done to the joined tensor, where our layers compute otherwise with equal results."""

    def to_ours(self, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [read(name) for name in self.theirs]
        match self.join:
            case Join.CONCATENATE:
                joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            case Join.STACK:
                joined = torch.stack(parts)
        if self.half is not None:
            joined = joined.chunk(2)[self.half]
        return joined if self.change is None else self.change(joined)


def entries(config: DecoderConfig, family: Family, query_scale: float = 1.0) -> Iterator[Entry]:
    """Names of all tensors of a decoder, ours and the family's.

    Args:
        config: shape of the decoder.
        family: whose names.
        query_scale: see `families.query_scale`.
    """
    is_gemma = family is Family.GEMMA3
    # Gemma's norms multiply by 1 + weight, and its tokens are multiplied by sqrt(D) when they are
    # read, not when they are predicted: the same as larger tokens behind a smaller last norm.
    width = math.sqrt(config.d_model)
    read_width = width if config.tie_embeddings else 1.0
    grown, plus_one, shrunk = (
        (lambda weight: weight * width, _plus_one, lambda weight: (weight + 1.0) / read_width)
        if is_gemma
        else (None, None, None)
    )
    yield Entry("embedding.weight", ("model.embed_tokens.weight",), change=grown)
    yield Entry("final_norm.weight", ("model.norm.weight",), change=shrunk)
    if not config.tie_embeddings:
        yield Entry("head.weight", ("lm_head.weight",))
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        yield from _attention(config, family, ours, theirs, query_scale)
        for our_norm, their_norm in _norms(config).items():
            name = f"{theirs}.{their_norm}.weight"
            yield Entry(f"{ours}.{our_norm}.weight", (name,), change=plus_one)
        if config.has_experts(index):
            yield from _experts(config, family, f"{ours}.feed_forward", theirs)
        else:
            yield from _feed_forward(config, family, f"{ours}.feed_forward", f"{theirs}.mlp")


def reason_to_skip(name: str, config: DecoderConfig) -> Reason | None:
    """Why a tensor of theirs may be left unread; None if there is no known reason."""
    if name == "lm_head.weight" and config.tie_embeddings:
        return "the token embeddings again, which is checked"
    if re.fullmatch(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", name):
        return "wavelengths, which follow from config.json"
    return None


def _attention(
    config: DecoderConfig, family: Family, ours: str, theirs: str, query_scale: float
) -> Iterator[Entry]:
    num_turned = config.num_heads + config.num_kv_heads

    def partly_turned(joined: Tensor) -> Tensor:
        """Their first dimensions of a head are turned; ours are the first of each half."""
        assert config.rotary_dim is not None
        order = rotary_order(config.rotary_dim, config.head_dim)
        heads = joined.unflatten(0, (-1, config.head_dim))
        return torch.cat([heads[:num_turned, order], heads[num_turned:]]).flatten(0, 1)

    change = None if config.rotary_dim is None else partly_turned
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        joined = tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in "qkv")
        if family is Family.PHI3:
            joined = (f"{theirs}.self_attn.qkv_proj.{kind}",)
        yield Entry(f"{ours}.attention.qkv.{kind}", joined, change=change)
    for kind in ("weight", "bias") if config.output_bias else ("weight",):
        yield Entry(f"{ours}.attention.output.{kind}", (f"{theirs}.self_attn.o_proj.{kind}",))
    if config.qk_norm is QKNorm.NONE:
        return
    changes = {"q_norm": None, "k_norm": None}
    if family is Family.GEMMA3:
        changes = {"q_norm": lambda x: _plus_one(x) * query_scale, "k_norm": _plus_one}
    for name, change in changes.items():
        their_name = f"{theirs}.self_attn.{name}.weight"
        yield Entry(f"{ours}.attention.{name}.weight", (their_name,), change=change)


def _plus_one(weight: Tensor) -> Tensor:
    return weight + 1.0


def rotary_order(rotary_dim: int, head_dim: int) -> list[int]:
    """Which dimension of a head, in transformers' order, each of ours is.

    Example: of 8 dimensions 4 are turned, in the pairs 0 2 and 1 3; ours are 0 1 4 5 2 3 6 7,
    whose pairs lie half a head apart.
    """
    half, rest = rotary_dim // 2, (head_dim - rotary_dim) // 2
    turned, others = list(range(rotary_dim)), list(range(rotary_dim, head_dim))
    return turned[:half] + others[:rest] + turned[half:] + others[rest:]


def _feed_forward(config: DecoderConfig, family: Family, ours: str, theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias") if config.feed_forward_bias else ("weight",):
        for half, name in enumerate(("gate", "up")):
            if family is Family.PHI3:
                both = (f"{theirs}.gate_up_proj.{kind}",)
                yield Entry(f"{ours}.{name}.{kind}", both, half=half)
            else:
                yield Entry(f"{ours}.{name}.{kind}", (f"{theirs}.{name}_proj.{kind}",))
        yield Entry(f"{ours}.down.{kind}", (f"{theirs}.down_proj.{kind}",))


def _experts(config: DecoderConfig, family: Family, ours: str, theirs: str) -> Iterator[Entry]:
    assert config.moe is not None, "has_experts is false without"
    if family is Family.MIXTRAL:
        block, names = "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}
    else:
        block, names = "mlp", {name: f"{name}_proj" for name in ("gate", "up", "down")}
    yield Entry(f"{ours}.router.weight", (f"{theirs}.{block}.gate.weight",))
    for our_name, their_name in names.items():
        stacked = tuple(
            f"{theirs}.{block}.experts.{expert}.{their_name}.weight"
            for expert in range(config.moe.num_experts)
        )
        yield Entry(f"{ours}.experts.{our_name}", stacked, Join.STACK)
    if config.moe.shared_d_ff is not None:
        yield Entry(f"{ours}.shared_gate.weight", (f"{theirs}.mlp.shared_expert_gate.weight",))
        yield from _feed_forward(config, family, f"{ours}.shared", f"{theirs}.mlp.shared_expert")


def _norms(config: DecoderConfig) -> dict[str, str]:
    match config.norm_order:
        case NormOrder.PRE:
            return {
                "attention_norm": "input_layernorm",
                "feed_forward_norm": "post_attention_layernorm",
            }
        case NormOrder.POST:
            return {
                "attention_norm": "post_attention_layernorm",
                "feed_forward_norm": "post_feedforward_layernorm",
            }
        case NormOrder.BOTH:
            return {
                "attention_norm": "input_layernorm",
                "attention_output_norm": "post_attention_layernorm",
                "feed_forward_norm": "pre_feedforward_layernorm",
                "feed_forward_output_norm": "post_feedforward_layernorm",
            }
