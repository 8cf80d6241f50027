"""The language model: a causal Transformer over flattened positions.

Layers see one long axis of P positions: the rows of a batch laid end to end. What a position
may attend to is not the layers' business; it comes as the function `attend`. Shape letters:
P positions, D width, H query heads, K key-value heads, E dimensions of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import (
    DecoderConfig,
    GateActivation,
    NormOrder,
    QKNorm,
    RopeScaling,
    RopeScalingKind,
)
from mm1_pipeline.models.attention import Attend
from mm1_pipeline.models.moe import MoEFeedForward, RouterLog, Routing
from mm1_pipeline.models.recompute import run_step


class Rotation(NamedTuple):
    """Angles of the rotary embeddings; the same for all layers and heads."""

    cosine: Tensor
    """float32[P, 1, E]."""
    sine: Tensor
    """float32[P, 1, E], negated in the first half."""


class Decoder(nn.Module):
    """Token embeddings, layers, final norm, and the map back to the vocabulary.

    The paper does not give the decoder's layout; Llama's (RMSNorm, rotary embeddings, SwiGLU,
    grouped queries, no biases) is our choice.

    Args:
        config: shape of the decoder.
        recompute: computes activations again in the backward pass, to save memory.
    """

    def __init__(self, config: DecoderConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.num_layers)
        )
        self.final_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.d_model, config.vocab_size, bias=False)
        )

    @property
    def vocabulary_weight(self) -> Tensor:
        """float[vocab_size, D]: rows whose product with a hidden state is a token's logit."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        embeddings: Tensor,
        position_ids: Tensor,
        attend: Attend,
        router_log: RouterLog | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embeddings: float[P, D], of tokens and image tokens.
            position_ids: int64[P], place in the own document.
            attend: what each position looks at.
            router_log: takes what the routers did, if anyone wants to know.

        Returns:
            float[P, D].
        """
        config = self.config
        rotation = local = rotary_angles(
            position_ids,
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            rotary_dim=config.rotary_dim,
        )
        if config.window_rope_theta is not None:
            local = rotary_angles(
                position_ids,
                config.head_dim,
                config.window_rope_theta,
                rotary_dim=config.rotary_dim,
            )
        hidden = embeddings
        counted = router_log.counted if router_log is not None else None
        for index, layer in enumerate(self.layers):
            turned = local if config.window_of(index) else rotation
            turned = None if index in config.unrotated_layers else turned
            hidden, routing = run_step(
                layer, hidden, turned, attend, counted, recompute=self.recompute
            )
            if router_log is not None and routing is not None:
                router_log.add(routing)
        return self.final_norm(hidden)


class DecoderLayer(nn.Module):
    """Attention, then a feed-forward map, each normed (before or after) and added to its input."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.norm_order = config.norm_order
        self.attention_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, index)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = build_feed_forward(config, index)
        if config.norm_order is NormOrder.BOTH:
            self.attention_output_norm = nn.RMSNorm(config.d_model, config.norm_eps)
            self.feed_forward_output_norm = nn.RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotation: Rotation | None,
        attend: Attend,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """Maps float[P, D] to float[P, D].

        What a router did is returned, not stored: where activations are computed again in the
        backward pass a layer runs twice, and would store it twice.

        Args:
            hidden: float[P, D].
            rotation: angles of the positions; None for a layer that does not know them.
            attend: what each position looks at.
            counted: bool[P], see `MoEFeedForward.forward`.

        Returns:
            float[P, D]; what the router did, if there is one and `counted` is given.
        """
        match self.norm_order:
            case NormOrder.PRE:
                attended = self.attention(self.attention_norm(hidden), rotation, attend)
                hidden = hidden + attended
                mapped, routing = self._feed_forward(self.feed_forward_norm(hidden), counted)
            case NormOrder.POST:
                attended = self.attention(hidden, rotation, attend)
                hidden = hidden + self.attention_norm(attended)
                mapped, routing = self._feed_forward(hidden, counted)
                mapped = self.feed_forward_norm(mapped)
            case NormOrder.BOTH:
                attended = self.attention(self.attention_norm(hidden), rotation, attend)
                hidden = hidden + self.attention_output_norm(attended)
                mapped, routing = self._feed_forward(self.feed_forward_norm(hidden), counted)
                mapped = self.feed_forward_output_norm(mapped)
        return hidden + mapped, routing

    def _feed_forward(
        self, hidden: Tensor, counted: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        if isinstance(self.feed_forward, MoEFeedForward):
            return self.feed_forward(hidden, counted)
        return self.feed_forward(hidden), None


class Attention(nn.Module):
    """Projections around grouped-query attention."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.window = config.window_of(index)
        self.head_dim = config.head_dim
        self.heads = (config.num_heads, config.num_kv_heads)
        num_projected = config.num_heads + 2 * config.num_kv_heads
        d_heads = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.d_model, num_projected * config.head_dim, bias=config.qkv_bias)
        self.norm_whole = config.qk_norm == QKNorm.WHOLE
        match config.qk_norm:
            case QKNorm.NONE:
                self.q_norm = self.k_norm = None
            case QKNorm.PER_HEAD:
                self.q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
                self.k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            case QKNorm.WHOLE:
                self.q_norm = nn.RMSNorm(d_heads, config.norm_eps)
                self.k_norm = nn.RMSNorm(config.num_kv_heads * config.head_dim, config.norm_eps)
        self.output = nn.Linear(d_heads, config.d_model, bias=config.output_bias)

    def forward(self, hidden: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        """Maps float[P, D] to float[P, D]."""
        num_heads, num_kv_heads = self.heads
        projected = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))
        qk, v = projected.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([num_heads, num_kv_heads], dim=1)
            qk = torch.cat([self._norm(self.q_norm, q), self._norm(self.k_norm, k)], dim=1)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split([num_heads, num_kv_heads], dim=1)
        return self.output(attend(self.index, q, k, v, self.window).flatten(1))

    def _norm(self, norm: nn.RMSNorm, heads: Tensor) -> Tensor:
        """float[P, heads, E], each head or all together."""
        return norm(heads.flatten(1)).view_as(heads) if self.norm_whole else norm(heads)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); imported decoders may gate by a GELU."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: GateActivation = GateActivation.SILU,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[P, D] to float[P, D]."""
        gate = self.gate(hidden)
        match self.activation:
            case GateActivation.SILU:
                gate = F.silu(gate)
            case GateActivation.GELU:
                gate = F.gelu(gate)
            case GateActivation.GELU_TANH:
                gate = F.gelu(gate, approximate="tanh")
        return self.down(gate * self.up(hidden))


def build_feed_forward(config: DecoderConfig, index: int) -> nn.Module:
    """The feed-forward module of one layer: experts where the config asks for them."""
    if config.moe is not None and config.has_experts(index):
        shared = None
        if config.moe.shared_d_ff is not None:
            shared = FeedForward(config.d_model, config.moe.shared_d_ff)
        return MoEFeedForward(config.moe, config.d_model, config.moe.d_ff or config.d_ff, shared)
    return FeedForward(
        config.d_model, config.d_ff, config.gate_activation, bias=config.feed_forward_bias
    )


def rotary_angles(
    position_ids: Tensor,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    *,
    rotary_dim: int | None = None,
) -> Rotation:
    """Angles of rotary embeddings in the half-split layout, as Llama's.

    Dimension i < R/2 is paired with i + E/2 and turned by position * theta^(-2i/R); of R < E
    the others are not turned.

    An angle is position / theta^(2i/R) in float32. transformers multiplies by 1 / theta^(2i/R):
    both are up to 3e-4 from the exact angle at 4,000 positions, and up to 2.4e-4 apart.

    Args:
        position_ids: int64[P].
        head_dim: E, numbers of a head.
        theta: base of the wavelengths.
        scaling: stretches the wavelengths.
        rotary_dim: R; None is E.
    """
    rotary_dim = rotary_dim or head_dim
    exponents = torch.arange(0, rotary_dim, 2, device=position_ids.device).float() / rotary_dim
    periods = theta**exponents  # positions a radian
    factor = 1.0
    if scaling is not None:
        longest = position_ids.max() + 1 if scaling.kind is RopeScalingKind.DYNAMIC else None
        periods = stretched(periods, scaling, theta=theta, num_positions=longest)
        factor = scaling.attention_factor
    angles = position_ids.float().unsqueeze(-1) / periods
    cosine, sine = angles.cos(), angles.sin()
    if factor != 1.0:
        cosine, sine = cosine * factor, sine * factor
    if rotary_dim < head_dim:
        rest = (head_dim - rotary_dim) // 2
        cosine, sine = F.pad(cosine, (0, rest), value=1.0), F.pad(sine, (0, rest))
    return Rotation(
        torch.cat([cosine, cosine], dim=-1).unsqueeze(1),
        torch.cat([-sine, sine], dim=-1).unsqueeze(1),
    )


def stretched(
    periods: Tensor,
    scaling: RopeScaling,
    *,
    theta: float = 10_000.0,
    num_positions: Tensor | None = None,
) -> Tensor:
    """Positions a radian of each wave after stretching.

    Args:
        periods: float32[R/2], before it: theta^(2i/R).
        scaling: kind, factor, and positions of the original training.
        theta: base of the waves; of YaRN and dynamic.
        num_positions: int64[], of the longest document; of dynamic.
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    match scaling.kind:
        case RopeScalingKind.LINEAR:
            return periods * scaling.factor
        case RopeScalingKind.LLAMA3:
            turns = scaling.original_max_positions / (2 * math.pi * periods)
            kept = ((turns - low) / (high - low)).clamp(0, 1)
        case RopeScalingKind.YARN:
            # Dimensions at which a wave makes `high` and `low` turns over the original positions.
            num_waves, span = len(periods), scaling.original_max_positions / (2 * math.pi)
            begin, end = (
                num_waves * math.log(span / turns) / math.log(theta) for turns in (high, low)
            )
            if scaling.whole_dimensions:
                begin, end = math.floor(begin), math.ceil(end)
            begin, end = max(begin, 0), min(end, 2 * num_waves - 1)
            places = torch.arange(num_waves, device=periods.device, dtype=torch.float32)
            kept = 1 - ((places - begin) / max(end - begin, 0.001)).clamp(0, 1)
        case RopeScalingKind.DYNAMIC:
            assert num_positions is not None
            longest = num_positions.clamp(min=scaling.original_max_positions)
            stretch = scaling.factor * longest / scaling.original_max_positions
            width = 2 * len(periods)
            base = theta * (stretch - (scaling.factor - 1)) ** (width / (width - 2))
            return base ** (torch.arange(0, width, 2, device=periods.device).float() / width)
    return periods / ((1 - kept) / scaling.factor + kept)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns heads by their position's angles, in float32 as the angles are.

    Args:
        x: float[P, heads, E].
        rotation: sines and cosines, float32[P, 1, E] each.

    Returns:
        float[P, heads, E], in x's dtype.
    """
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(x * rotation.cosine, swapped, rotation.sine).to(x.dtype)
