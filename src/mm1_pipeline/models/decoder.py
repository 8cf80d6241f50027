"""The language model: a pre-norm causal Transformer over flattened positions.

Layers see one long axis of P positions: the rows of a batch laid end to end. What a position
may attend to is not the layers' business; it comes as the function `attend`. Shape letters:
P positions, D width, H query heads, K key-value heads, E dimensions of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig
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
        rotation = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
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
    """Attention, then a feed-forward map, each normed before and added to its input."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
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
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation, attend)
        normed = self.feed_forward_norm(hidden)
        if isinstance(self.feed_forward, MoEFeedForward):
            added, routing = self.feed_forward(normed, counted)
            return hidden + added, routing
        return hidden + self.feed_forward(normed), None


class Attention(nn.Module):
    """Projections around grouped-query attention."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        self.heads = (config.num_heads, config.num_kv_heads)
        num_projected = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(config.d_model, num_projected * config.head_dim, bias=False)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, hidden: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Maps float[P, D] to float[P, D]."""
        num_heads, num_kv_heads = self.heads
        projected = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))
        qk, v = projected.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
        q, k = rotate(qk, rotation).split([num_heads, num_kv_heads], dim=1)
        return self.output(attend(self.index, q, k, v).flatten(1))


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


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> Rotation:
    """Angles of rotary embeddings in the half-split layout, as Llama's.

    Dimension i < E/2 is paired with i + E/2 and turned by position * theta^(-2i/E).

    Args:
        position_ids: int64[P].
        head_dim: E.
        theta: base of the wavelengths.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim
    angles = position_ids.float().unsqueeze(-1) / theta**exponents
    cosine, sine = angles.cos(), angles.sin()
    return Rotation(
        torch.cat([cosine, cosine], dim=-1).unsqueeze(1),
        torch.cat([-sine, sine], dim=-1).unsqueeze(1),
    )


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
