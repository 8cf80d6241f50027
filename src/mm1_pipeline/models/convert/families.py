"""Decoder families of Hugging Face: what their configs mean and what their tensors are called.

One table of names serves both ways, into this project's decoder and out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm1_pipeline.config.model import (
    DecoderConfig,
    MoEConfig,
    NormOrder,
    QKNorm,
    RopeScaling,
    RopeScalingKind,
)

HFConfig = Mapping[str, Any]


class Family(StrEnum):
    """`model_type` of a config.json."""

    LLAMA = "llama"
    """Also SmolLM, SmolLM2, TinyLlama, Llama 3."""
    QWEN2 = "qwen2"
    """Also Qwen2.5: biases of queries, keys and values."""
    QWEN3 = "qwen3"
    """Queries and keys normed by head."""
    OLMO2 = "olmo2"
    """Norms behind the maps; queries and keys normed as a whole."""
    MIXTRAL = "mixtral"
    """Experts in every layer."""
    QWEN3_MOE = "qwen3_moe"
    """Experts in every n-th layer."""


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

    def to_ours(self, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [read(name) for name in self.theirs]
        match self.join:
            case Join.CONCATENATE:
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            case Join.STACK:
                return torch.stack(parts)


def decoder_config(hf: HFConfig) -> tuple[Family, DecoderConfig]:
    """The decoder that a config.json describes.

    Raises:
        ValueError: another architecture, or an option of it that would give other results here.
    """
    family = _family(hf)
    _refuse_unsupported(hf, family)
    num_heads, d_model = hf["num_attention_heads"], hf["hidden_size"]
    head_dim = hf.get("head_dim") or d_model // num_heads
    return family, DecoderConfig(
        vocab_size=hf["vocab_size"],
        d_model=d_model,
        num_layers=hf["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=hf.get("num_key_value_heads") or num_heads,
        d_ff=hf["intermediate_size"],
        rope_theta=_rope(hf)["rope_theta"],
        norm_eps=hf["rms_norm_eps"],
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        d_head=None if head_dim * num_heads == d_model else head_dim,
        qkv_bias=family == Family.QWEN2,
        qk_norm=_qk_norm(family),
        norm_order=NormOrder.POST if family == Family.OLMO2 else NormOrder.PRE,
        rope_scaling=_rope_scaling(hf),
        moe=_moe(hf, family),
    )


def entries(config: DecoderConfig, family: Family) -> Iterator[Entry]:
    """Names of all tensors of a decoder, ours and the family's."""
    yield Entry("embedding.weight", ("model.embed_tokens.weight",))
    yield Entry("final_norm.weight", ("model.norm.weight",))
    if not config.tie_embeddings:
        yield Entry("head.weight", ("lm_head.weight",))
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        yield from _attention(config, ours, theirs)
        before_attention, before_feed_forward = _norms(family)
        yield Entry(f"{ours}.attention_norm.weight", (f"{theirs}.{before_attention}.weight",))
        yield Entry(f"{ours}.feed_forward_norm.weight", (f"{theirs}.{before_feed_forward}.weight",))
        if config.has_experts(index):
            yield from _experts(config, family, f"{ours}.feed_forward", theirs)
        else:
            for name in ("gate", "up", "down"):
                their_name = f"{theirs}.mlp.{name}_proj.weight"
                yield Entry(f"{ours}.feed_forward.{name}.weight", (their_name,))


def ignorable(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor of theirs may be left unread: it repeats what is known."""
    is_tied_head = name == "lm_head.weight" and config.tie_embeddings
    return is_tied_head or name.endswith("rotary_emb.inv_freq")


def _attention(config: DecoderConfig, ours: str, theirs: str) -> Iterator[Entry]:
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        joined = tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in "qkv")
        yield Entry(f"{ours}.attention.qkv.{kind}", joined)
    yield Entry(f"{ours}.attention.output.weight", (f"{theirs}.self_attn.o_proj.weight",))
    if config.qk_norm != QKNorm.NONE:
        for name in ("q_norm", "k_norm"):
            their_name = f"{theirs}.self_attn.{name}.weight"
            yield Entry(f"{ours}.attention.{name}.weight", (their_name,))


def _experts(config: DecoderConfig, family: Family, ours: str, theirs: str) -> Iterator[Entry]:
    assert config.moe is not None, "has_experts is false without"
    if family == Family.MIXTRAL:
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


def _norms(family: Family) -> tuple[str, str]:
    match family:
        case Family.OLMO2:
            return "post_attention_layernorm", "post_feedforward_layernorm"
        case _:
            return "input_layernorm", "post_attention_layernorm"


def _qk_norm(family: Family) -> QKNorm:
    match family:
        case Family.QWEN3 | Family.QWEN3_MOE:
            return QKNorm.PER_HEAD
        case Family.OLMO2:
            return QKNorm.WHOLE
        case Family.LLAMA | Family.QWEN2 | Family.MIXTRAL:
            return QKNorm.NONE


def _moe(hf: HFConfig, family: Family) -> MoEConfig | None:
    match family:
        case Family.MIXTRAL:
            return MoEConfig(num_experts=_num_experts(hf), top_k=hf["num_experts_per_tok"])
        case Family.QWEN3_MOE:
            return MoEConfig(
                num_experts=_num_experts(hf),
                every_n_layers=hf.get("decoder_sparse_step", 1),
                top_k=hf["num_experts_per_tok"],
                renormalise=bool(hf.get("norm_topk_prob", False)),
                d_ff=hf["moe_intermediate_size"],
            )
        case Family.LLAMA | Family.QWEN2 | Family.QWEN3 | Family.OLMO2:
            return None


def _experts_key(hf: HFConfig) -> str:
    """Families and versions of transformers call it one or the other."""
    return "num_experts" if "num_experts" in hf else "num_local_experts"


def _num_experts(hf: HFConfig) -> int:
    return hf[_experts_key(hf)]


def _rope(hf: HFConfig) -> dict[str, Any]:
    """Transformers 5 keeps theta and scaling in one `rope_parameters`, 4 apart."""
    if hf.get("rope_parameters"):
        return dict(hf["rope_parameters"])
    scaling = dict(hf.get("rope_scaling") or {})
    return {"rope_theta": hf["rope_theta"], **scaling}


def _rope_scaling(hf: HFConfig) -> RopeScaling | None:
    rope = _rope(hf)
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return None
        case "linear":
            return RopeScaling(kind=RopeScalingKind.LINEAR, factor=rope["factor"])
        case "llama3":
            return RopeScaling(
                kind=RopeScalingKind.LLAMA3,
                factor=rope["factor"],
                low_frequency_factor=rope["low_freq_factor"],
                high_frequency_factor=rope["high_freq_factor"],
                original_max_positions=rope["original_max_position_embeddings"],
            )
        case other:
            raise ValueError(
                f"config.json, rope_scaling: found {other!r}, expected default, linear or llama3. "
                "Remove it to use the decoder within the positions it was first trained on."
            )


def _family(hf: HFConfig) -> Family:
    try:
        family = Family(hf.get("model_type", ""))
    except ValueError:
        raise ValueError(
            f"config.json, model_type: found {hf.get('model_type')!r}, expected one of "
            f"{', '.join(Family)}."
        ) from None
    needed = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    needed += ["intermediate_size", "rms_norm_eps"]
    needed += [] if hf.get("rope_parameters") else ["rope_theta"]
    match family:
        case Family.MIXTRAL:
            needed += [_experts_key(hf), "num_experts_per_tok"]
        case Family.QWEN3_MOE:
            needed += [_experts_key(hf), "num_experts_per_tok", "moe_intermediate_size"]
        case _:
            pass
    missing = [key for key in needed if key not in hf]
    if missing:
        raise ValueError(f"config.json: found no {', '.join(missing)}, which {family} needs.")
    return family


def _refuse_unsupported(hf: HFConfig, family: Family) -> None:
    """Options that change results and are not built here, with the value that is."""
    expected = {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "partial_rotary_factor": (1.0, None),
        "quantization_config": (None,),
        "mlp_only_layers": ([], None),
        "use_sliding_window": (False, None),
    }
    if family == Family.MIXTRAL:
        expected["sliding_window"] = (None,)
    for key, allowed in expected.items():
        found = hf.get(key, allowed[0])
        if found not in allowed:
            raise ValueError(
                f"config.json, {key}: found {found!r}, expected {allowed[0]!r}; this decoder "
                "would compute something else than the checkpoint was trained for."
            )
