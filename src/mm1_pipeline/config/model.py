"""Shape of an MM1 model: encoder, connector, decoder."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated

from mm1_pipeline.config._base import (
    Count,
    Epsilon,
    Layers,
    Number,
    Pixels,
    Positive,
    Weight,
    Width,
    bounds,
    operational,
    parameters,
)


class Activation(StrEnum):
    """Non-linearity of the encoder's feed-forward layers."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"
    """x * sigmoid(1.702 x), OpenAI CLIP's."""
    GELU_TANH = "gelu_tanh"
    """GELU by a tanh, SigLIP's."""
    SWIGLU = "swiglu"
    """silu(gate(x)) * up(x): three maps instead of two, AIMv2's."""


class VisionNorm(StrEnum):
    """How an encoder normalises."""

    LAYER_NORM = "layer_norm"
    RMS_NORM = "rms_norm"


class EmbeddingNorm(StrEnum):
    """Where an encoder normalises before its first layer."""

    POSITIONED = "positioned"
    """After position embeddings are added, CLIP's."""
    PATCHES = "patches"
    """Before they are added, AIMv2's."""
    NONE = "none"
    """Nowhere, as SigLIP and AIM."""


class PositionEmbedding(StrEnum):
    """How an encoder knows where a patch lies."""

    LEARNED = "learned"
    """A vector a place; interpolated when the model is loaded at another resolution."""
    SINUSOIDAL = "sinusoidal"
    """Fixed sines and cosines of row and column, at any resolution; AIM's."""


class ConnectorKind(StrEnum):
    """How patch embeddings become image tokens (MM1, Connector ablation)."""

    AVERAGE_POOLING = "average_pooling"
    """n x n average, then a linear map."""
    ATTENTION_POOLING = "attention_pooling"
    """Learnable queries that attend to the patches."""
    C_ABSTRACTOR = "c_abstractor"
    """ResNet blocks, adaptive average pooling, ResNet blocks (Honeybee)."""
    MLP = "mlp"
    """n x n average, then two linear maps with a GELU between them. With as many tokens as patches
    nothing is pooled: LLaVA-1.5's projector, which `export` writes as transformers' own class."""


@parameters
class VisionConfig:
    """A pre-norm Vision Transformer without a class token in its output.

    The defaults are CLIP's layout without class token and with a final norm; presets
    (models/presets.py) name the combinations that released encoders have.
    """

    image_size: Pixels
    patch_size: Pixels
    d_model: Width
    num_layers: Layers
    num_heads: Width
    d_ff: Width
    activation: Activation = Activation.GELU
    norm_eps: Epsilon = 1e-5
    class_token: bool = False
    """Keeps CLIP's class token inside the encoder (needed for imported CLIP weights)."""
    final_norm: bool = True
    """Normalises the patch embeddings that go to the connector."""
    feature_layer: Annotated[int, bounds(ge=-10_000, le=-1)] = -1
    """Layer whose output goes to the connector: -1 the last, -2 the one before (as LLaVA takes
    it from CLIP). Layers after it are not built."""
    norm: VisionNorm = VisionNorm.LAYER_NORM
    embedding_norm: EmbeddingNorm = EmbeddingNorm.POSITIONED
    positions: PositionEmbedding = PositionEmbedding.LEARNED
    bias: bool = True
    """Whether the linear maps of the layers have one."""
    patch_bias: bool = False
    """Whether the map from pixels has one."""

    @property
    def num_built_layers(self) -> int:
        """Layers that compute something for the connector."""
        return self.num_layers + 1 + self.feature_layer

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: found {self.image_size}, expected a multiple of the patch size "
                f"{self.patch_size}; nearest: {self.grid * self.patch_size} or "
                f"{(self.grid + 1) * self.patch_size}."
            )
        if self.feature_layer < -self.num_layers:
            raise ValueError(
                f"feature_layer: found {self.feature_layer}, expected -{self.num_layers} "
                "(the first layer) to -1 (the last)."
            )
        if self.positions is PositionEmbedding.SINUSOIDAL:
            if self.class_token:
                raise ValueError(
                    "class_token: found true, expected false: sinusoidal positions have no place "
                    "for a class token."
                )
            if self.d_model % 4:
                raise ValueError(
                    f"d_model: found {self.d_model}, expected a multiple of 4: sinusoidal "
                    "positions are sines and cosines of rows and columns."
                )
        _check_heads(self.d_model, self.num_heads)


@parameters
class ConnectorConfig:
    """The map from patch embeddings to image tokens."""

    kind: ConnectorKind = ConnectorKind.C_ABSTRACTOR
    num_tokens: Width = 144
    """Image tokens for one image; a square number."""
    d_hidden: Width | None = None
    """Width of the C-Abstractor's blocks; None takes the encoder's."""
    num_blocks: Annotated[int, bounds(ge=0, le=1_000)] = 3
    """C-Abstractor: ResNet blocks before and after the pooling. Honeybee's value."""
    num_heads: Width = 8
    """Attention pooling: heads of the cross-attention."""

    @property
    def token_grid(self) -> int:
        """Image tokens along one side."""
        return math.isqrt(self.num_tokens)

    def __post_init__(self) -> None:
        if self.token_grid**2 != self.num_tokens:
            raise ValueError(
                f"num_tokens: found {self.num_tokens}, expected a square number; "
                f"nearest: {self.token_grid**2} or {(self.token_grid + 1) ** 2}."
            )


class QKNorm(StrEnum):
    """What is normed of queries and keys before they are turned."""

    NONE = "none"
    PER_HEAD = "per_head"
    """Each head, with weights shared by all (Qwen3)."""
    WHOLE = "whole"
    """All heads of a position together (OLMo 2)."""


class NormOrder(StrEnum):
    """Where a layer norms."""

    PRE = "pre"
    """x + f(norm(x)), as Llama."""
    POST = "post"
    """x + norm(f(x)), as OLMo 2."""
    BOTH = "both"
    """x + norm(f(norm(x))), as Gemma 3."""


class GateActivation(StrEnum):
    """Non-linearity of the gate of a decoder's feed-forward layers."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    """GELU by a tanh, Gemma's."""


class RopeScalingKind(StrEnum):
    """How rotary embeddings reach beyond the positions they were trained on."""

    LINEAR = "linear"
    """All wavelengths times `factor`."""
    LLAMA3 = "llama3"
    """Long wavelengths times `factor`, short ones kept, a smooth passage between (Llama 3.1)."""
    YARN = "yarn"
    """As Llama 3's, with another passage, and queries and keys times `attention_factor` (arXiv
    2309.00071)."""
    DYNAMIC = "dynamic"
    """None up to `original_max_positions`; beyond, a larger theta, by the longest document of the
    batch. What a document sees then depends on the batch."""


@parameters
class RopeScaling:
    """Stretches the wavelengths of rotary embeddings; for imported decoders."""

    kind: RopeScalingKind
    factor: Positive
    low_frequency_factor: Positive = 1.0
    """Llama 3, YaRN: wavelengths above original_max_positions / this are stretched in full."""
    high_frequency_factor: Positive = 4.0
    """Llama 3, YaRN: wavelengths below original_max_positions / this are kept."""
    original_max_positions: Count = 8192
    """Positions before stretching; of all kinds but linear."""
    attention_factor: Positive = 1.0
    """YaRN: cosines and sines are multiplied by it."""
    whole_dimensions: bool = True
    """YaRN: the passage begins and ends at whole dimensions (`truncate`)."""

    def __post_init__(self) -> None:
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor: found {self.high_frequency_factor}, expected more than "
                f"low_frequency_factor ({self.low_frequency_factor})."
            )


@parameters
class MoEConfig:
    """Which feed-forward layers of a decoder are mixtures of experts, and how they route.

    A dense decoder becomes an MoE by `dataclasses.replace(config, moe=MoEConfig(...))`.
    Source: MM1, Mixture of experts (top-2, both loss weights).
    """

    num_experts: Layers
    every_n_layers: Layers = 1
    """Every n-th layer has experts, the n-th being the first: 2 makes it layers 1, 3, 5, ..."""
    top_k: Width = 2
    """Experts that compute a position."""
    renormalise: bool = True
    """Makes the weights of the chosen experts sum to 1. Our choice: equal experts then compute
    what one dense layer does, so upcycling starts from the dense model's output."""
    load_balance_weight: Weight = 0.01
    router_z_weight: Weight = 0.001
    d_ff: Width | None = None
    """Width of an expert; None takes the decoder's."""
    shared_d_ff: Width | None = None
    """Width of one more expert that computes every position, times a gate of its own (Qwen2-MoE);
    None has none. For imported decoders."""

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k: found {self.top_k}, expected 1..num_experts ({self.num_experts})."
            )


@parameters
class DecoderConfig:
    """A causal Transformer: RMSNorm, RoPE, SwiGLU, grouped-query attention.

    The defaults are Llama's layout; the variants exist for imported decoders.
    """

    vocab_size: Annotated[int, bounds(ge=1, le=100_000_000)]
    d_model: Width
    num_layers: Layers
    num_heads: Width
    num_kv_heads: Width
    d_ff: Width
    rope_theta: Positive = 10_000.0
    norm_eps: Epsilon = 1e-5
    tie_embeddings: bool = True
    d_head: Width | None = None
    """Width of a head; None is d_model / num_heads."""
    qkv_bias: bool = False
    """Biases of the query, key and value maps (Qwen2)."""
    qk_norm: QKNorm = QKNorm.NONE
    norm_order: NormOrder = NormOrder.PRE
    rope_scaling: RopeScaling | None = None
    output_bias: bool = False
    """A bias of the map behind attention."""
    feed_forward_bias: bool = False
    """Biases of the feed-forward maps."""
    gate_activation: GateActivation = GateActivation.SILU
    rotary_dim: Annotated[int, bounds(ge=2, le=2**20)] | None = None
    """Dimensions of a head that positions turn; None is all. Half of them are the first of the
    head's first half, half the first of its second."""
    unrotated_layers: tuple[Number, ...] = ()
    """Layers, counted from 0, that do not know positions (SmolLM3)."""
    window: Count | None = None
    """Positions that `window_layers` see: the own one and those before it."""
    window_layers: tuple[Number, ...] = ()
    """Layers, counted from 0, that see a window only."""
    window_rope_theta: Positive | None = None
    """Theta of the window layers, without `rope_scaling` (Gemma 3); None takes the others'."""
    moe: MoEConfig | None = None
    """None keeps every feed-forward layer dense."""
    output_z_weight: Weight = 0.0
    """Weight of mean(log(sum(exp(logits)))^2), which keeps logits from drifting. 0 leaves it out;
    PaLM's is 1e-4. Our option: the paper names none."""

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.num_heads

    @property
    def non_embedding_parameters(self) -> int:
        """The N of the learning-rate law: everything but token embeddings and output head.

        Of a mixture of experts, that of the dense decoder it has the shape of: the two are
        trained with the same learning rate.

        Source: MM1, Pre-training; that N leaves the embeddings out is unconfirmed.
        """
        heads, kv_heads = self.num_heads, self.num_kv_heads
        attention = self.d_model * self.head_dim * (2 * heads + 2 * kv_heads)
        if self.qkv_bias:
            attention += self.head_dim * (heads + 2 * kv_heads)
        match self.qk_norm:
            case QKNorm.NONE:
                pass
            case QKNorm.PER_HEAD:
                attention += 2 * self.head_dim
            case QKNorm.WHOLE:
                attention += self.head_dim * (heads + kv_heads)
        feed_forward = 3 * self.d_model * self.d_ff
        if self.output_bias:
            attention += self.d_model
        if self.feed_forward_bias:
            feed_forward += 2 * self.d_ff + self.d_model
        norms = (4 if self.norm_order is NormOrder.BOTH else 2) * self.d_model
        return self.num_layers * (attention + feed_forward + norms) + self.d_model

    @property
    def num_parameters(self) -> int:
        """All weights, those of all experts and the embeddings included."""
        return self._count(experts_used=self.moe.num_experts if self.moe else 0)

    @property
    def num_active_parameters(self) -> int:
        """Weights that take part in computing one position."""
        return self._count(experts_used=self.moe.top_k if self.moe else 0)

    def _count(self, *, experts_used: int) -> int:
        embeddings = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        if self.moe is None:
            return embeddings + self.non_embedding_parameters
        expert = 3 * self.d_model * (self.moe.d_ff or self.d_ff)
        router = self.moe.num_experts * self.d_model
        shared = (
            3 * self.d_model * self.moe.shared_d_ff + self.d_model if self.moe.shared_d_ff else 0
        )
        replaced = experts_used * expert + router + shared - 3 * self.d_model * self.d_ff
        num_replaced = self.num_layers // self.moe.every_n_layers
        return embeddings + self.non_embedding_parameters + num_replaced * replaced

    def window_of(self, layer: int) -> int | None:
        """Positions that a layer, counted from 0, sees; None is all."""
        return self.window if layer in self.window_layers else None

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, counted from 0, is a mixture of experts."""
        return self.moe is not None and (layer + 1) % self.moe.every_n_layers == 0

    def __post_init__(self) -> None:
        if self.d_head is None:
            _check_heads(self.d_model, self.num_heads)
        if self.moe is not None and self.moe.every_n_layers > self.num_layers:
            raise ValueError(
                f"moe.every_n_layers: found {self.moe.every_n_layers}, expected at most "
                f"{self.num_layers}, the layers that there are: none would have experts."
            )
        if self.moe is not None and self.feed_forward_bias:
            raise ValueError("feed_forward_bias: found true, expected false: experts have none.")
        if self.moe is not None and self.gate_activation is not GateActivation.SILU:
            raise ValueError(
                f"gate_activation: found {self.gate_activation.value}, expected silu: experts "
                "have no other."
            )
        if self.window_layers and self.window is None:
            raise ValueError(
                f"window: found {self.window}, expected at least 1 position for window_layers."
            )
        for name in ("window_layers", "unrotated_layers"):
            others = [n for n in getattr(self, name) if not 0 <= n < self.num_layers]
            if others:
                raise ValueError(
                    f"{name}: found {min(others)}, expected layers from 0 to {self.num_layers - 1}."
                )
        if self.rotary_dim is not None and self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim: found {self.rotary_dim}, expected 2 to {self.head_dim}, the "
                "dimensions of a head."
            )
        if (self.rotary_dim or 2) % 2:
            raise ValueError(f"rotary_dim: found {self.rotary_dim}, expected an even number.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: found {self.num_kv_heads}, expected a number that divides "
                f"num_heads ({self.num_heads})."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"{'num_heads' if self.d_head is None else 'd_head'}: found heads of "
                f"{self.head_dim} dimensions; rotary embeddings need an even number."
            )


@parameters
class MM1Config:
    """An MM1 model."""

    vision: VisionConfig
    connector: ConnectorConfig
    decoder: DecoderConfig
    gradient_checkpointing: bool = operational(default=False)
    """Recomputes activations in the backward pass: less memory, more time, same result."""

    def __post_init__(self) -> None:
        pools = self.connector.kind != ConnectorKind.ATTENTION_POOLING
        if pools and self.connector.num_tokens > self.vision.num_patches:
            raise ValueError(
                f"connector.num_tokens: found {self.connector.num_tokens}, expected at most "
                f"{self.vision.num_patches}, the patches that the encoder gives, as pooling cannot "
                "make more; use smaller patches, larger images or fewer tokens."
            )
        if not pools and self.decoder.d_model % self.connector.num_heads:
            raise ValueError(
                f"connector.num_heads: found {self.connector.num_heads}, expected a number that "
                f"divides decoder.d_model ({self.decoder.d_model})."
            )


def _check_heads(d_model: int, num_heads: int) -> None:
    if d_model % num_heads:
        raise ValueError(
            f"num_heads: found {num_heads}, expected a number that divides d_model ({d_model})."
        )
