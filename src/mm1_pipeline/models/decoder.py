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

from mm1_pipeline.config.model import DecoderConfig, NormOrder, QKNorm, RopeScaling, RopeScalingKind
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
        rotation = rotary_angles(
            position_ids, config.head_dim, config.rope_theta, config.rope_scaling
        )
        hidden = embeddings
        counted = router_log.counted if router_log is not None else None
        for layer in self.layers:
            hidden, routing = run_step(
                layer, hidden, rotation, attend, counted, recompute=self.recompute
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

    def forward(
        self, hidden: Tensor, rotation: Rotation, attend: Attend, counted: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Maps float[P, D] to float[P, D].

        What a router did is returned, not stored: where activations are computed again in the
        backward pass a layer runs twice, and would store it twice.

        Args:
            hidden: float[P, D].
            rotation: angles of the positions.
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
        self.output = nn.Linear(d_heads, config.d_model, bias=False)

    def forward(self, hidden: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Maps float[P, D] to float[P, D]."""
        num_heads, num_kv_heads = self.heads
        projected = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))
        qk, v = projected.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([num_heads, num_kv_heads], dim=1)
            qk = torch.cat([self._norm(self.q_norm, q), self._norm(self.k_norm, k)], dim=1)
        q, k = rotate(qk, rotation).split([num_heads, num_kv_heads], dim=1)
        return self.output(attend(self.index, q, k, v).flatten(1))

    def _norm(self, norm: nn.RMSNorm, heads: Tensor) -> Tensor:
        """float[P, heads, E], each head or all together."""
        return norm(heads.flatten(1)).view_as(heads) if self.norm_whole else norm(heads)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[P, D] to float[P, D]."""
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def build_feed_forward(config: DecoderConfig, index: int) -> nn.Module:
    """The feed-forward module of one layer: experts where the config asks for them."""
    if config.moe is not None and config.has_experts(index):
        return MoEFeedForward(config.moe, config.d_model, config.moe.d_ff or config.d_ff)
    return FeedForward(config.d_model, config.d_ff)


def rotary_angles(
    position_ids: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
    """Angles of rotary embeddings in the half-split layout, as Llama's.

    Dimension i < E/2 is paired with i + E/2 and turned by position * theta^(-2i/E).

    Args:
        position_ids: int64[P].
        head_dim: E.
        theta: base of the wavelengths.
        scaling: stretches the wavelengths.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    periods = theta**exponents  # positions a radian
    if scaling is not None:
        periods = _stretched(periods, scaling)
    angles = position_ids.float().unsqueeze(-1) / periods
    cosine, sine = angles.cos(), angles.sin()
    return Rotation(
        torch.cat([cosine, cosine], dim=-1).unsqueeze(1),
        torch.cat([-sine, sine], dim=-1).unsqueeze(1),
    )


def _stretched(periods: Tensor, scaling: RopeScaling) -> Tensor:
    match scaling.kind:
        case RopeScalingKind.LINEAR:
            return periods * scaling.factor
        case RopeScalingKind.LLAMA3:
            turns = scaling.original_max_positions / (2 * math.pi * periods)
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            kept = ((turns - low) / (high - low)).clamp(0, 1)
            return periods / ((1 - kept) / scaling.factor + kept)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns heads by their position's angles, in float32 as the angles are.

    Args:
        x: float[P, heads, E].
        rotation: angles of the P positions.

    Returns:
        float[P, heads, E], in x's dtype.
    """
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(x * rotation.cosine, swapped, rotation.sine).to(x.dtype)
