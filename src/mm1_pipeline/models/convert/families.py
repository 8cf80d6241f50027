"""Decoder families of Hugging Face: what the fields of their config.json mean.

Every field is read, known to change nothing, or refused by its name (`accounting.Fields`). A
field that is missing has the value that the family's class in transformers takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from mm1_pipeline.config._base import MOST_LAYERS
from mm1_pipeline.config.model import (
    DecoderConfig,
    GateActivation,
    MoEConfig,
    NormOrder,
    QKNorm,
    RopeScaling,
    RopeScalingKind,
)
from mm1_pipeline.models.convert.accounting import Fields, Reason

HFConfig = Mapping[str, Any]


class Family(StrEnum):
    """`model_type` of a config.json."""

    LLAMA = "llama"
    """Also SmolLM, SmolLM2, TinyLlama, Llama 3."""
    MISTRAL = "mistral"
    """A window in every layer, or in none."""
    QWEN2 = "qwen2"
    """Also Qwen2.5: biases of queries, keys and values."""
    QWEN3 = "qwen3"
    """Queries and keys normed by head."""
    OLMO2 = "olmo2"
    """Norms behind the maps; queries and keys normed as a whole."""
    OLMO3 = "olmo3"
    """OLMo 2 with a window in three of four layers."""
    SMOLLM3 = "smollm3"
    """Every fourth layer does not know positions."""
    GEMMA3 = "gemma3_text"
    """Norms before and behind the maps, windows with positions of their own."""
    PHI3 = "phi3"
    """Also Phi-4: queries, keys and values in one map, gate and up in another."""
    MIXTRAL = "mixtral"
    """Experts in every layer."""
    QWEN2_MOE = "qwen2_moe"
    """Experts in every n-th layer, and one that computes every position."""
    QWEN3_MOE = "qwen3_moe"
    """Experts in every n-th layer."""


class Defaults(NamedTuple):
    """What a family's class takes for a missing field, where families differ."""

    classes: str
    """What the names of its classes begin with."""
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = 10_000.0
    """None: versions of transformers differ, so it has to be told."""
    num_key_value_heads: int | None = None
    """None: as many as heads."""
    head_dim: int | None = None
    sliding_window: int | None = None
    tie_word_embeddings: bool = False


DEFAULTS: Mapping[Family, Defaults] = {
    Family.LLAMA: Defaults("Llama"),
    Family.MISTRAL: Defaults("Mistral", num_key_value_heads=8, sliding_window=4096),
    Family.QWEN2: Defaults("Qwen2", num_key_value_heads=32),
    Family.QWEN3: Defaults("Qwen3", num_key_value_heads=32, head_dim=128),
    Family.OLMO2: Defaults("Olmo2", rms_norm_eps=1e-5),
    Family.OLMO3: Defaults("Olmo3", rms_norm_eps=1e-5, rope_theta=None, sliding_window=4096),
    Family.SMOLLM3: Defaults(
        "SmolLM3", rope_theta=2_000_000.0, num_key_value_heads=4, tie_word_embeddings=True
    ),
    Family.GEMMA3: Defaults(
        "Gemma3",
        rope_theta=1_000_000.0,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=4096,
        tie_word_embeddings=True,
    ),
    Family.PHI3: Defaults("Phi3", rms_norm_eps=1e-5),
    Family.MIXTRAL: Defaults(
        "Mixtral", rms_norm_eps=1e-5, rope_theta=1_000_000.0, num_key_value_heads=8
    ),
    Family.QWEN2_MOE: Defaults("Qwen2Moe", num_key_value_heads=16),
    Family.QWEN3_MOE: Defaults("Qwen3Moe", num_key_value_heads=4),
}

_LOCAL_THETA = 10_000.0
"""Of Gemma 3's windows, if its config does not tell."""

_UNREAD: Mapping[str, Reason] = {
    # `dynamic` and `yarn` read the first.
    "max_position_embeddings": "positions are computed, not looked up in a table",
    "original_max_position_embeddings": "of longrope, which is refused",
    "model_max_length": "the tokenizer's",
    "router_aux_loss_coef": "of a training",
    "router_jitter_noise": "of a training",
    "output_router_logits": "what a call returns",
    "resid_pdrop": "of a training",
    "embd_pdrop": "of a training",
    "pretraining_tp": "products cut in pieces, with the same sums",
    "is_llama_config": "said by model_type",
    "cache_implementation": "how it is computed, with equal results",
}
"""Fields of decoders that change no result, and why."""

_ACTIVATIONS = {
    "silu": GateActivation.SILU,
    "swish": GateActivation.SILU,
    "gelu": GateActivation.GELU,
    "gelu_pytorch_tanh": GateActivation.GELU_TANH,
}


def decoder_config(hf: HFConfig) -> tuple[Family, DecoderConfig]:
    """The decoder that a config.json describes.

    Raises:
        ValueError: another architecture, or a field that is not known or would give other
            results here.
    """
    try:
        family = Family(hf.get("model_type", ""))
    except ValueError:
        raise ValueError(
            f"config.json, model_type: found {hf.get('model_type')!r}, expected one of "
            f"{', '.join(Family)}."
        ) from None
    defaults = DEFAULTS[family]
    fields = Fields(hf, "config.json")
    fields.skip(_UNREAD)
    num_heads, d_model = fields.number("num_attention_heads"), fields.number("hidden_size")
    num_layers = fields.count("num_hidden_layers", MOST_LAYERS)
    head_dim = fields.read("head_dim", defaults.head_dim) or d_model // num_heads
    kv_heads = fields.read("num_key_value_heads", defaults.num_key_value_heads) or num_heads
    window, window_layers = _windows(fields, family, num_layers)
    has_bias = family in (Family.QWEN2, Family.QWEN2_MOE)
    rope = _rope(fields, family)
    rotary_dim = int(head_dim * rope.partial)
    config = DecoderConfig(
        vocab_size=fields.number("vocab_size"),
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        d_ff=fields.number("intermediate_size"),
        rope_theta=rope.theta,
        norm_eps=fields.number("rms_norm_eps", defaults.rms_norm_eps),
        tie_embeddings=bool(fields.read("tie_word_embeddings", defaults.tie_word_embeddings)),
        d_head=None if head_dim * num_heads == d_model else head_dim,
        qkv_bias=has_bias or _flag(fields, family, "attention_bias"),
        output_bias=_flag(fields, family, "attention_bias"),
        feed_forward_bias=_flag(fields, family, "mlp_bias"),
        gate_activation=_activation(fields, family),
        qk_norm=_qk_norm(family),
        norm_order=_norm_order(family),
        rope_scaling=rope.scaling,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        unrotated_layers=_unrotated(fields, family, num_layers),
        window=window,
        window_layers=window_layers,
        window_rope_theta=rope.window_theta if window_layers else None,
        moe=_moe(fields, family),
    )
    _expect_the_rest(fields, family, head_dim)
    fields.finish()
    return family, config


def query_scale(hf: HFConfig, config: DecoderConfig) -> float:
    """What queries are multiplied by beyond 1 / sqrt(head_dim): Gemma has a scale of its own."""
    if hf.get("model_type") != Family.GEMMA3:
        return 1.0
    return math.sqrt(config.head_dim / hf.get("query_pre_attn_scalar", 256))


_HAS_FLAG = {
    "attention_bias": (
        Family.LLAMA,
        Family.QWEN3,
        Family.OLMO2,
        Family.OLMO3,
        Family.SMOLLM3,
        Family.GEMMA3,
        Family.QWEN3_MOE,
    ),
    "mlp_bias": (Family.LLAMA, Family.SMOLLM3),
}


def _flag(fields: Fields, family: Family, name: str) -> bool:
    if family not in _HAS_FLAG[name]:
        fields.expect(name, False)
        return False
    return bool(fields.read(name, False))


def _activation(fields: Fields, family: Family) -> GateActivation:
    is_gemma = family is Family.GEMMA3
    default = "gelu_pytorch_tanh" if is_gemma else "silu"
    name = "hidden_activation" if is_gemma else "hidden_act"
    if is_gemma:
        fields.expect("hidden_act", "gelu_pytorch_tanh")  # an older name, which nobody reads
    value = fields.read(name) or default
    if value not in _ACTIVATIONS:
        raise fields.refusal(name, value, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _expect_the_rest(fields: Fields, family: Family, head_dim: int) -> None:
    """Options that change results and are not built here, with the value that is."""
    fields.expect("rope_interleaved", False)
    fields.expect("use_bidirectional_attention", False)
    fields.expect("final_logit_softcapping")
    fields.expect("attn_logit_softcapping")
    fields.expect("mlp_only_layers", [])
    fields.expect("qkv_bias", family is Family.QWEN2_MOE)
    if family is Family.GEMMA3:
        fields.number("query_pre_attn_scalar", head_dim)
    code = fields.read("auto_map") or {}
    classes = DEFAULTS[family].classes
    if not all(str(name).rpartition(".")[2].startswith(classes) for name in code.values()):
        raise fields.refusal("auto_map", code, f"classes of {classes}, as in transformers")


def _qk_norm(family: Family) -> QKNorm:
    match family:
        case Family.QWEN3 | Family.QWEN3_MOE | Family.GEMMA3:
            return QKNorm.PER_HEAD
        case Family.OLMO2 | Family.OLMO3:
            return QKNorm.WHOLE
        case _:
            return QKNorm.NONE


def _norm_order(family: Family) -> NormOrder:
    match family:
        case Family.OLMO2 | Family.OLMO3:
            return NormOrder.POST
        case Family.GEMMA3:
            return NormOrder.BOTH
        case _:
            return NormOrder.PRE


def _unrotated(fields: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    if family is not Family.SMOLLM3:
        return ()
    interval = fields.number("no_rope_layer_interval", 4)
    turned = fields.read("no_rope_layers")  # 1 where positions turn
    if turned is None:
        turned = [(index + 1) % interval != 0 for index in range(num_layers)]
    _check_length(fields, "no_rope_layers", turned, num_layers)
    return tuple(index for index, is_turned in enumerate(turned) if not is_turned)


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
    """How far layers with a window see, and which layers have one."""
    window = fields.read("sliding_window", DEFAULTS[family].sliding_window)
    if family in (Family.QWEN2, Family.QWEN3, Family.SMOLLM3):
        window = window if fields.read("use_sliding_window", False) else None
    first = fields.read("max_window_layers", 28)
    pattern = fields.read("sliding_window_pattern", fields.read("_sliding_window_pattern", 6))
    layers = range(num_layers)
    match family:
        case Family.MISTRAL | Family.MIXTRAL | Family.PHI3:
            chosen = layers if window is not None else ()
        case Family.QWEN2 | Family.QWEN3:
            chosen = [index for index in layers if window is not None and index >= first]
        case Family.SMOLLM3:
            chosen = _unrotated(fields, family, num_layers) if window is not None else ()
        case Family.GEMMA3:
            chosen = [index for index in layers if (index + 1) % pattern]
        case Family.OLMO3:
            chosen = [index for index in layers if (index + 1) % 4]
        case Family.QWEN2_MOE | Family.QWEN3_MOE:
            # Versions of transformers differ in which layers have it.
            fields.expect("use_sliding_window", False)
            chosen = ()
        case Family.LLAMA | Family.OLMO2:
            fields.expect("sliding_window")
            fields.expect("use_sliding_window", False)
            chosen = ()
    types = fields.read("layer_types")
    if types is not None:
        _check_length(fields, "layer_types", types, num_layers)
        if others := set(types) - {"full_attention", "sliding_attention"}:
            expected = "full_attention or sliding_attention"
            raise fields.refusal("layer_types", min(others), expected)
        told = [index for index, kind in enumerate(types) if kind == "sliding_attention"]
        told_by_list = (Family.QWEN2, Family.QWEN3, Family.SMOLLM3, Family.GEMMA3, Family.OLMO3)
        if told != list(chosen) and (family not in told_by_list or window is None):
            raise fields.refusal("layer_types", types, "the layers that sliding_window names")
        chosen = told
    return (window if chosen else None), tuple(chosen)


def _check_length(fields: Fields, name: str, values: Any, num_layers: int) -> None:
    if not isinstance(values, list) or len(values) != num_layers:
        raise fields.refusal(name, values, f"a list of {num_layers} entries, one a layer")


def _moe(fields: Fields, family: Family) -> MoEConfig | None:
    # Families and versions of transformers call it one or the other.
    names = ("num_experts", "num_local_experts")
    match family:
        case Family.MIXTRAL:
            experts = fields.read(names[1]) or fields.number(names[0], 8)
            return MoEConfig(num_experts=experts, top_k=fields.number("num_experts_per_tok", 2))
        case Family.QWEN3_MOE | Family.QWEN2_MOE:
            experts = fields.read(names[1]) or fields.number(names[0])
            fields.skip(names)
            shared = None
            if family is Family.QWEN2_MOE:
                shared = fields.number("shared_expert_intermediate_size", 5632)
            return MoEConfig(
                num_experts=experts,
                every_n_layers=fields.number("decoder_sparse_step", 1),
                top_k=fields.number("num_experts_per_tok"),
                renormalise=bool(fields.read("norm_topk_prob", False)),
                d_ff=fields.number("moe_intermediate_size"),
                shared_d_ff=shared,
            )
        case _:
            return None


class _Rope(NamedTuple):
    theta: float
    scaling: RopeScaling | None
    partial: float
    """Share of a head's dimensions that positions turn."""
    window_theta: float | None
    """Of layers with a window, if they have positions of their own."""


def _rope(fields: Fields, family: Family) -> _Rope:
    """Transformers 5 keeps all of it in `rope_parameters`, 4 keeps it apart."""
    defaults = DEFAULTS[family]
    has_kinds = family in (Family.GEMMA3, Family.OLMO3)  # of layers
    new, old = fields.read("rope_parameters"), fields.read("rope_scaling")
    told_theta = fields.read("rope_theta")
    told_local = fields.read("rope_local_base_freq") if family is Family.GEMMA3 else None
    told_partial = fields.read("partial_rotary_factor")
    local: dict[str, Any] = {}
    if new and {"full_attention", "sliding_attention"} & set(new):
        if not has_kinds:
            raise fields.refusal("rope_parameters", new, "one for all layers")
        local = dict(new.get("sliding_attention") or {})
        new = dict(new.get("full_attention") or {})
    given = dict(new or {})
    if old and given and any(given.get(key, value) != value for key, value in old.items()):
        raise fields.refusal("rope_scaling", old, f"{given}, as in rope_parameters")
    given = {**given, **(old or {})}
    for name, value in (("rope_theta", told_theta), ("partial_rotary_factor", told_partial)):
        if value is not None and given.setdefault(name, value) != value:
            raise fields.refusal(name, value, f"{given[name]}, as in rope_parameters")
    inner = Fields(given, "config.json, rope_scaling")
    theta = inner.number("rope_theta", defaults.rope_theta)
    if family is not Family.PHI3:
        inner.expect("partial_rotary_factor", 1.0)
    partial = inner.number("partial_rotary_factor", 1.0)
    scaling = _scaling(inner, fields, theta)
    inner.finish()
    window_theta = None
    if has_kinds:
        default = told_local or (_LOCAL_THETA if family is Family.GEMMA3 else theta)
        inner = Fields(local, "config.json, rope_parameters.sliding_attention")
        window_theta = float(inner.number("rope_theta", default))
        inner.expect("rope_type", "default")
        inner.finish()
        if window_theta == theta and scaling is None:
            window_theta = None
    return _Rope(float(theta), scaling, partial, window_theta)


def _scaling(rope: Fields, fields: Fields, theta: float) -> RopeScaling | None:
    kinds = {rope.read(name) for name in ("rope_type", "type")} - {None}
    if len(kinds) > 1:
        raise rope.refusal("type", rope.read("type"), f"{rope.read('rope_type')!r}, as rope_type")
    positions = fields.read("max_position_embeddings")
    match kinds.pop() if kinds else "default":
        case "default":
            rope.skip(("factor", "original_max_position_embeddings"))
            return None
        case "linear":
            rope.skip(("original_max_position_embeddings",))
            return RopeScaling(kind=RopeScalingKind.LINEAR, factor=rope.number("factor"))
        case "llama3":
            return RopeScaling(
                kind=RopeScalingKind.LLAMA3,
                factor=rope.number("factor"),
                low_frequency_factor=rope.number("low_freq_factor"),
                high_frequency_factor=rope.number("high_freq_factor"),
                original_max_positions=rope.number("original_max_position_embeddings"),
            )
        case "dynamic":
            rope.skip(("original_max_position_embeddings",))
            return RopeScaling(
                kind=RopeScalingKind.DYNAMIC,
                factor=rope.number("factor"),
                original_max_positions=fields.number("max_position_embeddings"),
            )
        case "yarn":
            factor = rope.number("factor")
            scales = [rope.read(name) for name in ("mscale", "mscale_all_dim")]
            attention = rope.read("attention_factor")
            if attention is None and all(scales):
                attention = _yarn_scale(factor, scales[0]) / _yarn_scale(factor, scales[1])
            return RopeScaling(
                kind=RopeScalingKind.YARN,
                factor=factor,
                low_frequency_factor=rope.number("beta_slow", 1),
                high_frequency_factor=rope.number("beta_fast", 32),
                original_max_positions=rope.number("original_max_position_embeddings", positions),
                attention_factor=_yarn_scale(factor) if attention is None else attention,
                whole_dimensions=bool(rope.read("truncate", True)),
            )
        case other:
            raise ValueError(
                f"config.json, rope_scaling: found {other!r}, expected default, linear, dynamic, "
                "yarn or llama3. Remove it to use the decoder within the positions it was first "
                "trained on."
            )


def _yarn_scale(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
