"""A model as transformers' own LLaVA class holds it: configuration and names of tensors.

`LlavaForConditionalGeneration` is CLIP's encoder, a projector of two linear maps, and a decoder
of transformers. A model of that very shape needs none of this project's code to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm1_pipeline.config.model import (
    Activation,
    ConnectorKind,
    DecoderConfig,
    EmbeddingNorm,
    MM1Config,
    NormOrder,
    PositionEmbedding,
    QKNorm,
    RopeScalingKind,
    VisionConfig,
    VisionNorm,
)
from mm1_pipeline.models.convert.families import Family
from mm1_pipeline.models.convert.tensor_names import entries

_ENCODER = "vision_tower.vision_model"
_DECODER = "language_model"
_PROJECTOR = "multi_modal_projector"
"""Prefixes of the published checkpoints (llava-hf), which all versions of transformers know."""

_MAX_POSITIONS = 32_768
"""What config.json says; rotary embeddings have no table that would end there. Our choice."""

_ACTIVATIONS = {
    Activation.GELU: "gelu",
    Activation.QUICK_GELU: "quick_gelu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
}


class StoredTensor(NamedTuple):
    """One tensor as it is stored, and where its numbers come from."""

    name: str
    shape: tuple[int, ...]
    ours: str | None = None
    """Name in a saved `MM1`; None for a norm that nothing reads: weights 1, biases 0."""
    rows: tuple[int, int] | None = None
    """First row and the row after the last; None takes all."""

    def read(self, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor, out of those of the model."""
        if self.ours is None:
            return torch.full(self.shape, 1.0 if self.name.endswith("weight") else 0.0)
        tensor = read(self.ours)
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)]
        return tensor.reshape(self.shape)


def why_not_llava(config: MM1Config) -> list[str]:
    """What of a model LLaVA's class cannot compute, each with the parameter and the reason.

    Source: none; the class is transformers', with the encoder, the projector and the choice of
    features of LLaVA-1.5 (arXiv 2310.03744).
    """
    vision, connector, decoder = config.vision, config.connector, config.decoder
    tokens, patches = connector.num_tokens, vision.num_patches
    rules = (
        (
            connector.kind is ConnectorKind.MLP,
            f"model.connector.kind: {connector.kind.value} -> mlp (its projector is Linear, GELU, "
            "Linear)",
        ),
        (
            tokens == patches,
            f"model.connector.num_tokens: {tokens} -> {patches} (every patch is a token, nothing "
            "is pooled)",
        ),
        (
            vision.class_token,
            "model.vision.class_token: false -> true (its encoder, CLIP's, attends to one)",
        ),
        (
            not vision.final_norm,
            "model.vision.final_norm: true -> false (it takes features before the last norm)",
        ),
        (
            vision.embedding_norm is EmbeddingNorm.POSITIONED,
            f"model.vision.embedding_norm: {vision.embedding_norm.value} -> positioned",
        ),
        (
            vision.positions is PositionEmbedding.LEARNED,
            f"model.vision.positions: {vision.positions.value} -> learned",
        ),
        (
            vision.norm is VisionNorm.LAYER_NORM,
            f"model.vision.norm: {vision.norm.value} -> layer_norm",
        ),
        (vision.bias, "model.vision.bias: false -> true"),
        (not vision.patch_bias, "model.vision.patch_bias: true -> false"),
        (
            vision.activation in _ACTIVATIONS,
            f"model.vision.activation: {vision.activation.value} -> one of "
            f"{', '.join(_ACTIVATIONS)}",
        ),
        (
            decoder.moe is None,
            "model.decoder.moe: found experts, whose names in transformers change between its "
            "versions",
        ),
        (
            _family(decoder) is not None,
            f"model.decoder: found qkv_bias {decoder.qkv_bias}, qk_norm {decoder.qk_norm.value}, "
            f"norm_order {decoder.norm_order.value}, which together no family of "
            "transformers has (Llama, Qwen2, Qwen3, OLMo 2), or an option of other imported "
            "decoders (windows, biases of other maps, YaRN, another gate)",
        ),
    )
    return [reason for holds, reason in rules if not holds]


def llava_config(config: MM1Config, image_token_id: int) -> dict[str, Any]:
    """Content of config.json for a model that `why_not_llava` has nothing against."""
    vision = config.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_token_id,
        "image_seq_length": config.connector.num_tokens,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.decoder.tie_embeddings,
        # Layers behind the features are not stored.
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": _text_config(config.decoder),
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "hidden_size": vision.d_model,
            "num_hidden_layers": vision.num_built_layers,
            "num_attention_heads": vision.num_heads,
            "intermediate_size": vision.d_ff,
            "hidden_act": _ACTIVATIONS[vision.activation],
            "layer_norm_eps": vision.norm_eps,
            "projection_dim": vision.d_model,
        },
    }


def llava_pieces(config: MM1Config, shapes: dict[str, tuple[int, ...]]) -> Iterator[StoredTensor]:
    """Every tensor of the class, in the order of its parts.

    Args:
        config: of the model.
        shapes: of its tensors, by their names in a saved `MM1`.
    """
    yield from _encoder_pieces(config.vision, shapes)
    for ours, theirs in (("connector.up", "linear_1"), ("connector.output", "linear_2")):
        for kind in ("weight", "bias"):
            name = f"{ours}.{kind}"
            yield StoredTensor(f"{_PROJECTOR}.{theirs}.{kind}", shapes[name], name)
    family = _family(config.decoder)
    assert family is not None, "see why_not_llava"
    for entry in entries(config.decoder, family):
        ours = f"decoder.{entry.ours}"
        names = [f"{_DECODER}.{name}" for name in entry.theirs]
        yield from _cut(ours, names, shapes[ours], _heights(config.decoder, entry.ours))


def _encoder_pieces(
    vision: VisionConfig, shapes: dict[str, tuple[int, ...]]
) -> Iterator[StoredTensor]:
    d_model, patch = vision.d_model, vision.patch_size
    embeddings = f"{_ENCODER}.embeddings"
    yield StoredTensor(f"{embeddings}.class_embedding", (d_model,), "vision.class_embedding")
    kernel = (d_model, 3, patch, patch)
    yield StoredTensor(
        f"{embeddings}.patch_embedding.weight", kernel, "vision.patch_embedding.weight"
    )
    positions = "vision.position_embeddings"
    yield StoredTensor(f"{embeddings}.position_embedding.weight", shapes[positions], positions)
    for kind in ("weight", "bias"):
        yield StoredTensor(
            f"{_ENCODER}.pre_layrnorm.{kind}", (d_model,), f"vision.embedding_norm.{kind}"
        )
        yield StoredTensor(f"{_ENCODER}.post_layernorm.{kind}", (d_model,))
    maps = {
        "attention_norm": ("layer_norm1",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.output": ("self_attn.out_proj",),
        "feed_forward_norm": ("layer_norm2",),
        "feed_forward.up": ("mlp.fc1",),
        "feed_forward.down": ("mlp.fc2",),
    }
    for index in range(vision.num_built_layers):
        for ours, theirs in maps.items():
            for kind in ("weight", "bias"):
                name = f"vision.layers.{index}.{ours}.{kind}"
                names = [f"{_ENCODER}.encoder.layers.{index}.{their}.{kind}" for their in theirs]
                yield from _cut(name, names, shapes[name], [])


def _cut(
    ours: str, names: list[str], shape: tuple[int, ...], heights: list[int]
) -> Iterator[StoredTensor]:
    """One tensor as several, one below the other; equally high unless heights are given."""
    heights = heights or [shape[0] // len(names)] * len(names)
    first = 0
    for name, height in zip(names, heights, strict=True):
        rows = None if len(names) == 1 else (first, first + height)
        yield StoredTensor(name, (height, *shape[1:]), ours, rows)
        first += height
    assert first == shape[0], ours


_WRITTEN = (
    *("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "rope_theta"),
    *("norm_eps", "tie_embeddings", "d_head", "qkv_bias", "qk_norm", "norm_order"),
    *("rope_scaling", "moe", "output_z_weight"),
)
"""What of a decoder `_text_config` writes; the other options have no family there."""


def _heights(decoder: DecoderConfig, ours: str) -> list[int]:
    """Rows of queries, keys and values where they are one tensor."""
    if ".attention.qkv." not in ours:
        return []
    heads = (decoder.num_heads, decoder.num_kv_heads, decoder.num_kv_heads)
    return [number * decoder.head_dim for number in heads]


def _family(decoder: DecoderConfig) -> Family | None:
    plain = DecoderConfig(
        **{name: getattr(decoder, name) for name in _WRITTEN},
    )
    is_stretched_otherwise = decoder.rope_scaling is not None and decoder.rope_scaling.kind in (
        RopeScalingKind.YARN,
        RopeScalingKind.DYNAMIC,
    )
    if plain != decoder or is_stretched_otherwise:
        return None
    match (decoder.norm_order, decoder.qk_norm, decoder.qkv_bias):
        case (NormOrder.PRE, QKNorm.NONE, False):
            return Family.LLAMA
        case (NormOrder.PRE, QKNorm.NONE, True):
            return Family.QWEN2
        case (NormOrder.PRE, QKNorm.PER_HEAD, False):
            return Family.QWEN3
        case (NormOrder.POST, QKNorm.WHOLE, False):
            return Family.OLMO2
        case _:
            return None


def _text_config(decoder: DecoderConfig) -> dict[str, Any]:
    family = _family(decoder)
    assert family is not None, "see why_not_llava"
    return {
        "model_type": family.value,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.d_model,
        "intermediate_size": decoder.d_ff,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": _rope_scaling(decoder),
        "tie_word_embeddings": decoder.tie_embeddings,
        "max_position_embeddings": _MAX_POSITIONS,
    }


def _rope_scaling(decoder: DecoderConfig) -> dict[str, Any] | None:
    scaling = decoder.rope_scaling
    if scaling is None:
        return None
    match scaling.kind:
        case RopeScalingKind.LINEAR:
            return {"rope_type": "linear", "factor": scaling.factor}
        case RopeScalingKind.LLAMA3:
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
        case RopeScalingKind.YARN | RopeScalingKind.DYNAMIC:
            raise AssertionError("see why_not_llava")
