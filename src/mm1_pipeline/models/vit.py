"""The image encoder: a pre-norm Vision Transformer in the layouts of the encoders in use.

Shape letters: N images, S pixels of a side, G patches (+ 1 with a class token), D width.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import (
    Activation,
    EmbeddingNorm,
    PositionEmbedding,
    VisionConfig,
    VisionNorm,
)
from mm1_pipeline.models.fused_attention import fused_attention
from mm1_pipeline.models.recompute import run_step

_WAVELENGTH = 10_000.0
"""Longest wavelength of sinusoidal positions over 2 pi; as in all encoders that use them."""


class Resampling(StrEnum):
    """How position embeddings are brought to another grid; encoders' own programs differ."""

    BICUBIC = "bicubic"
    """transformers' CLIP, SigLIP and BLIP; ours, where an encoder is resized here."""
    BICUBIC_ANTIALIASED = "bicubic_antialiased"
    """open_clip's."""
    BILINEAR_ANTIALIASED = "bilinear_antialiased"
    """SigLIP 2 NaFlex's."""


class VisionTransformer(nn.Module):
    """Images to patch embeddings.

    Source: MM1, Model (CLIP ViT-L/14 and ViT-H/14, AIM; the connector reads patches, not the
    class token).

    Args:
        config: shape of the encoder.
        recompute: computes activations again in the backward pass, to save memory.
    """

    def __init__(self, config: VisionConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        num_positions = config.num_patches + config.class_token
        self.patch_embedding = nn.Linear(
            3 * config.patch_size**2, config.d_model, bias=config.patch_bias
        )
        self.class_embedding = (
            nn.Parameter(torch.empty(config.d_model)) if config.class_token else None
        )
        self.position_embeddings = (
            nn.Parameter(torch.empty(num_positions, config.d_model))
            if config.positions is PositionEmbedding.LEARNED
            else None
        )
        self.embedding_norm = (
            nn.Identity() if config.embedding_norm is EmbeddingNorm.NONE else build_norm(config)
        )
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_built_layers))
        self.final_norm = build_norm(config) if config.final_norm else nn.Identity()

    def forward(self, pixel_values: Tensor, prefix_lengths: Tensor | None = None) -> Tensor:
        """Patch embeddings, in reading order.

        No images (N = 0) are computed like any number: the weights then get gradients of zero,
        which data-parallel training needs, at no cost.

        Args:
            pixel_values: float[N, 3, S, S], normalised.
            prefix_lengths: int64[N]; see `prefix_mask`. None lets every patch see all others.

        Returns:
            float[N, num_patches, D].

        Raises:
            ValueError: the images are not of the size that the encoder was made for.
        """
        hidden = self.encode(pixel_values, prefix_lengths)
        return hidden if self.class_embedding is None else hidden[:, 1:]

    def encode(self, pixel_values: Tensor, prefix_lengths: Tensor | None = None) -> Tensor:
        """Like `forward`, but keeps the class token, if there is one, as the first.

        Args:
            pixel_values: float[N, 3, S, S], normalised.
            prefix_lengths: int64[N], or None.

        Returns:
            float[N, G, D].
        """
        hidden = self._embed(self.patch_embedding(self.patches(pixel_values)))
        mask = None
        if prefix_lengths is not None:
            mask = prefix_mask(prefix_lengths, hidden.shape[1])
        for layer in self.layers:
            hidden = run_step(layer, hidden, mask, recompute=self.recompute)
        return self.final_norm(hidden)

    @torch.no_grad()
    def resize(self, image_size: int) -> None:
        """Makes the encoder one for images of another size; see `resize_positions`.

        Args:
            image_size: pixels of a side, a multiple of the patch size.
        """
        self.config = dataclasses.replace(self.config, image_size=image_size)
        if self.position_embeddings is not None:
            resized = resize_positions(
                self.position_embeddings, self.config.grid, class_token=self.config.class_token
            )
            self.position_embeddings = nn.Parameter(resized.detach())

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Cuts images into patches, each laid out as a kernel of CLIP's patch convolution:
        channel, row, column.

        Args:
            pixel_values: float[N, 3, S, S].

        Returns:
            float[N, num_patches, 3 * patch_size ** 2].

        Raises:
            ValueError: the images are not of the size that the encoder was made for.
        """
        size, patch, grid = self.config.image_size, self.config.patch_size, self.config.grid
        if tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"Found pixel_values of shape {list(pixel_values.shape)}, expected "
                f"[N, 3, {size}, {size}]. Resize the images to the encoder's image_size."
            )
        tiles = pixel_values.view(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(len(pixel_values), grid**2, 3 * patch**2)

    def _embed(self, patches: Tensor) -> Tensor:
        """Adds class token and positions to float[N, num_patches, D], and normalises."""
        config = self.config
        if config.embedding_norm is EmbeddingNorm.PATCHES:
            patches = self.embedding_norm(patches)
        if self.class_embedding is not None:
            first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
            patches = torch.cat([first, patches], dim=1)
        if self.position_embeddings is not None:
            hidden = patches + self.position_embeddings
        else:
            hidden = patches + sinusoidal_positions(config.grid, config.d_model, patches)
        if config.embedding_norm is EmbeddingNorm.POSITIONED:
            hidden = self.embedding_norm(hidden)
        return hidden


class VisionLayer(nn.Module):
    """Attention over all patches, then a feed-forward map, each added to its input."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = VisionAttention(config)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = VisionFeedForward(config)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]; the mask is bool[N, 1, G, G]."""
        hidden = hidden + self.attention(self.attention_norm(hidden), mask)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class VisionAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.output = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]."""
        num_images, num_positions, d_model = hidden.shape
        shape = (num_images, num_positions, 3, self.num_heads, d_model // self.num_heads)
        q, k, v = self.qkv(hidden).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        attended = fused_attention(q, k, v, mask)
        return self.output(attended.transpose(1, 2).reshape(hidden.shape))


class VisionFeedForward(nn.Module):
    """Linear maps with a non-linearity between them; SwiGLU has a third, the gate."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = (
            nn.Linear(config.d_model, config.d_ff, bias=config.bias)
            if config.activation is Activation.SWIGLU
            else None
        )
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]."""
        up = self.up(hidden)
        match self.activation:
            case Activation.GELU:
                inner = F.gelu(up)
            case Activation.QUICK_GELU:
                inner = up * torch.sigmoid(1.702 * up)
            case Activation.GELU_TANH:
                inner = F.gelu(up, approximate="tanh")
            case Activation.SWIGLU:
                assert self.gate is not None
                inner = F.silu(self.gate(hidden)) * up
        return self.down(inner)


def build_norm(config: VisionConfig) -> nn.Module:
    """One of an encoder's norms."""
    match config.norm:
        case VisionNorm.LAYER_NORM:
            return nn.LayerNorm(config.d_model, config.norm_eps)
        case VisionNorm.RMS_NORM:
            return nn.RMSNorm(config.d_model, config.norm_eps)


def prefix_mask(prefix_lengths: Tensor, num_patches: int) -> Tensor:
    """What patches may see in prefix attention: the prefix whole, the rest up to themselves.

    With 4 patches and a prefix of 2, rows are what patch 0, 1, 2, 3 sees:

        x x . .
        x x . .
        x x x .
        x x x x

    Source: AIM (arXiv 2401.08541), on which MM1's AIM encoders rest.

    Args:
        prefix_lengths: int64[N], 0..num_patches; 0 and 1 are causal attention.
        num_patches: G, patches of an image.

    Returns:
        bool[N, 1, G, G], True where the row's patch sees the column's.
    """
    places = torch.arange(num_patches, device=prefix_lengths.device)
    is_earlier = places <= places.unsqueeze(1)
    is_prefix = places < prefix_lengths.view(-1, 1, 1, 1)
    return is_earlier | is_prefix


def sinusoidal_positions(grid: int, d_model: int, like: Tensor) -> Tensor:
    """Sines and cosines of a patch's column, then of its row, as MAE, AIM and AIMv2 lay them out.

    Args:
        grid: patches along a side, from 1.
        d_model: D, a multiple of 4: sin(column), cos(column), sin(row), cos(row) get a
            quarter each.
        like: gives device and dtype.

    Returns:
        float[grid ** 2, D].
    """
    quarter = d_model // 4
    places = torch.arange(grid, device=like.device, dtype=torch.float32)
    rates = _WAVELENGTH ** -(torch.arange(quarter, device=like.device).float() / quarter)
    angles = places.unsqueeze(1) * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves.repeat_interleave(grid, dim=0)
    columns = waves.repeat(grid, 1)
    return torch.cat([columns, rows], dim=1).to(like.dtype)


def resize_positions(
    embeddings: Tensor,
    grid: int,
    *,
    class_token: bool = False,
    resampling: Resampling = Resampling.BICUBIC,
) -> Tensor:
    """Position embeddings for another number of patches, by interpolation.

    Patches keep their place in the picture: the grid's corners stay, what lies between is
    sampled anew. A class token has no place and is kept as it is. The same grid gives the
    same values.

    Source: MM1, SFT (position-embedding interpolation); that it is bicubic by default is our
    choice, as in most encoders' own code.

    Args:
        embeddings: float[P, D], of a square grid in reading order, after the class token's.
        grid: patches along a side that are wanted.
        class_token: whether the first row is a class token's.
        resampling: kernel, and whether shrinking is antialiased.

    Returns:
        float[grid ** 2 (+ 1), D].

    Raises:
        ValueError: the patches are not a square.
    """
    first, places = embeddings[: int(class_token)], embeddings[int(class_token) :]
    old = int(len(places) ** 0.5)
    if old**2 != len(places):
        raise ValueError(
            f"Found {len(places)} position embeddings of patches, expected a square number: only "
            "square images can be interpolated."
        )
    if old == grid:
        return embeddings
    image = places.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(
        image,
        size=(grid, grid),
        mode="bilinear" if resampling is Resampling.BILINEAR_ANTIALIASED else "bicubic",
        align_corners=False,
        antialias=resampling is not Resampling.BICUBIC,
    )
    return torch.cat([first, resized[0].flatten(1).T.to(embeddings.dtype)])
