"""The image encoder: a pre-norm Vision Transformer, laid out as CLIP's.

Shape letters: N images, S pixels of a side, G patches (+ 1 with a class token), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import Activation, VisionConfig
from mm1_pipeline.models.recompute import run_step


class VisionTransformer(nn.Module):
    """Images to patch embeddings.

    Source: MM1, Model (CLIP ViT-L/14 and ViT-H/14; the connector reads patches, not the class
    token).

    Args:
        config: shape of the encoder.
        recompute: computes activations again in the backward pass, to save memory.
    """

    def __init__(self, config: VisionConfig, *, recompute: bool = False) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        num_positions = config.num_patches + config.class_token
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.d_model, bias=False)
        self.class_embedding = (
            nn.Parameter(torch.empty(config.d_model)) if config.class_token else None
        )
        self.position_embeddings = nn.Parameter(torch.empty(num_positions, config.d_model))
        self.embedding_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_built_layers))
        self.final_norm = (
            nn.LayerNorm(config.d_model, config.norm_eps) if config.final_norm else nn.Identity()
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patch embeddings, in reading order.

        No images (N = 0) are computed like any number: the weights then get gradients of zero,
        which data-parallel training needs, at no cost.

        Args:
            pixel_values: float[N, 3, S, S], normalised.

        Returns:
            float[N, num_patches, D].

        Raises:
            ValueError: the images are not of the size that the encoder was made for.
        """
        hidden = self.patch_embedding(self._patches(pixel_values))
        if self.class_embedding is not None:
            first = self.class_embedding.to(hidden.dtype).expand(len(hidden), 1, -1)
            hidden = torch.cat([first, hidden], dim=1)
        hidden = self.embedding_norm(hidden + self.position_embeddings)
        for layer in self.layers:
            hidden = run_step(layer, hidden, recompute=self.recompute)
        if self.class_embedding is not None:
            hidden = hidden[:, 1:]
        return self.final_norm(hidden)

    def _patches(self, pixel_values: Tensor) -> Tensor:
        """float[N, num_patches, 3 * patch_size ** 2]; a patch is laid out as a kernel of CLIP's
        patch convolution: channel, row, column.
        """
        size, patch, grid = self.config.image_size, self.config.patch_size, self.config.grid
        if tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"Found pixel_values of shape {list(pixel_values.shape)}, expected "
                f"[N, 3, {size}, {size}]. Resize the images to the encoder's image_size."
            )
        tiles = pixel_values.view(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(len(pixel_values), grid**2, 3 * patch**2)


class VisionLayer(nn.Module):
    """Attention over all patches, then a feed-forward map, each added to its input."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.attention = VisionAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.feed_forward = VisionFeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class VisionAttention(nn.Module):
    """Multi-head self-attention without a mask."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]."""
        num_images, num_positions, d_model = hidden.shape
        shape = (num_images, num_positions, 3, self.num_heads, d_model // self.num_heads)
        q, k, v = self.qkv(hidden).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.output(attended.transpose(1, 2).reshape(hidden.shape))


class VisionFeedForward(nn.Module):
    """Two linear maps with a non-linearity between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, D] to float[N, G, D]."""
        return self.down(activate(self.up(hidden), self.activation))


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Applies an encoder's non-linearity."""
    match activation:
        case Activation.GELU:
            return F.gelu(x)
        case Activation.QUICK_GELU:
            return x * torch.sigmoid(1.702 * x)
