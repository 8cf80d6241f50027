"""The vision-language connectors: patch embeddings to image tokens.

Every connector maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]: N images,
their patches in reading order, tokens in reading order where they have a place. A new one is a
member of `ConnectorKind` and a class here, listed in `CONNECTORS`; importing this refuses one that
is not listed, or that does not count its operations.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import ConnectorConfig, ConnectorKind, VisionConfig
from mm1_pipeline.models.fused_attention import fused_attention


class Connector(nn.Module, ABC):
    """A map from patch embeddings to image tokens that knows what it costs.

    Args:
        config: kind and size of the connector.
        vision: the encoder that it reads from.
        d_model: width of the decoder that it writes for.
    """

    @abstractmethod
    def __init__(self, config: ConnectorConfig, vision: VisionConfig, d_model: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, patch_embeddings: Tensor) -> Tensor:
        """Maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]."""

    @staticmethod
    @abstractmethod
    def count_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
        """Operations of the forward pass over one image, as `models.flops` counts them.

        From the shapes alone, so that a plan need not build what it plans.
        """


class AveragePooling(Connector):
    """Averages patches over a square, then maps them linearly.

    Source: MM1, Connector ablation (n x n average, as Emu2); deviation: where n does not divide
    the grid, windows overlap by adaptive pooling.
    """

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, d_model: int) -> None:
        super().__init__(config, vision, d_model)
        self.grid, self.token_grid = vision.grid, config.token_grid
        self.output = nn.Linear(vision.d_model, d_model)

    def forward(self, patch_embeddings: Tensor) -> Tensor:
        """Maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]."""
        return self.output(pool_patches(patch_embeddings, self.grid, self.token_grid))

    @staticmethod
    def count_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
        """The linear map of every token; averaging is no product."""
        return 2 * config.num_tokens * vision.d_model * d_model


class MLPProjector(Connector):
    """Averages patches over a square, if at all, then maps them by two linear maps.

    Source: LLaVA-1.5 (arXiv 2310.03744), for as many tokens as patches; not in MM1. The pooling
    before it is average pooling's, for MM1's numbers of tokens: our choice.
    """

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, d_model: int) -> None:
        super().__init__(config, vision, d_model)
        self.grid, self.token_grid = vision.grid, config.token_grid
        self.up = nn.Linear(vision.d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, patch_embeddings: Tensor) -> Tensor:
        """Maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]."""
        pooled = pool_patches(patch_embeddings, self.grid, self.token_grid)
        return self.output(F.gelu(self.up(pooled)))

    @staticmethod
    def count_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
        """The two linear maps of every token."""
        return 2 * config.num_tokens * (vision.d_model * d_model + d_model**2)


class AttentionPooling(Connector):
    """Lets learnable queries attend to the patches.

    Source: MM1, Connector ablation (k learnable queries, cross-attention); the paper gives no
    further detail: one layer and the norm before it are our choice.
    """

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, d_model: int) -> None:
        super().__init__(config, vision, d_model)
        self.num_heads = config.num_heads
        self.queries = nn.Parameter(torch.empty(config.num_tokens, d_model))
        self.patch_norm = nn.LayerNorm(vision.d_model)
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(vision.d_model, d_model)
        self.value = nn.Linear(vision.d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, patch_embeddings: Tensor) -> Tensor:
        """Maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]."""
        patches = self.patch_norm(patch_embeddings)
        queries = self.query(self.queries).expand(len(patches), -1, -1)
        q, k, v = map(self._heads, (queries, self.key(patches), self.value(patches)))
        attended = fused_attention(q, k, v)
        return self.output(attended.transpose(1, 2).flatten(2))

    @staticmethod
    def count_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
        """Keys and values of every patch, outputs of every token, and attention between them.

        Queries are learned: they are mapped once a batch, which is nothing.
        """
        tokens, patches = config.num_tokens, vision.num_patches
        projections = 2 * patches * vision.d_model * d_model + tokens * d_model**2
        return 2 * projections + 4 * tokens * patches * d_model

    def _heads(self, x: Tensor) -> Tensor:
        num_images, length, d_model = x.shape
        return x.view(num_images, length, self.num_heads, d_model // self.num_heads).transpose(1, 2)


class CAbstractor(Connector):
    """Convolves, pools, convolves: keeps what is near each other near.

    Source: MM1, Connector ablation (C-Abstractor: ResNet blocks, adaptive average pooling,
    ResNet blocks). Blocks, squeeze-and-excitation and the two-layer map at the end follow
    Honeybee (arXiv 2312.06742); that MM1 kept them is unconfirmed.
    """

    def __init__(self, config: ConnectorConfig, vision: VisionConfig, d_model: int) -> None:
        super().__init__(config, vision, d_model)
        self.grid, self.token_grid = vision.grid, config.token_grid
        width = config.d_hidden or vision.d_model
        widths = [vision.d_model] + [width] * (config.num_blocks - 1)
        self.position_embeddings = nn.Parameter(torch.empty(vision.num_patches, vision.d_model))
        self.before = nn.Sequential(*(ResNetBlock(d_in, width) for d_in in widths))
        self.after = nn.Sequential(*(ResNetBlock(width, width) for _ in widths))
        self.up = nn.Linear(width, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, patch_embeddings: Tensor) -> Tensor:
        """Maps float[N, num_patches, d_vision] to float[N, num_tokens, d_model]."""
        patches = patch_embeddings + self.position_embeddings
        patches = self.before(patches.unflatten(1, (self.grid, self.grid))).flatten(1, 2)
        tokens = pool_patches(patches, self.grid, self.token_grid)
        tokens = self.after(tokens.unflatten(1, (self.token_grid, self.token_grid)))
        return self.output(F.silu(self.up(tokens.flatten(1, 2))))

    @staticmethod
    def count_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
        """The blocks over the patches' grid, those over the tokens', and the two linear maps."""
        patches, tokens, width = vision.num_patches, config.num_tokens, vision.d_model
        hidden, later = config.d_hidden or width, config.num_blocks - 1
        first = ResNetBlock.count_flops(width, hidden, patches)
        before = first + later * ResNetBlock.count_flops(hidden, hidden, patches)
        after = config.num_blocks * ResNetBlock.count_flops(hidden, hidden, tokens)
        return before + after + 2 * tokens * (hidden * d_model + d_model**2)


class ResNetBlock(nn.Module):
    """A RegNet-Y bottleneck: 1x1, depthwise 3x3, squeeze-and-excitation, 1x1, shortcut.

    Channels come last, so that 1x1 convolutions are linear maps and norms are over channels.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(d_in, d_out, bias=False)
        self.reduce_norm = nn.LayerNorm(d_out)
        self.spatial = nn.Conv2d(d_out, d_out, 3, padding=1, groups=d_out, bias=False)
        self.spatial_norm = nn.LayerNorm(d_out)
        self.squeeze = nn.Linear(d_out, max(1, d_in // 4))
        self.excite = nn.Linear(max(1, d_in // 4), d_out)
        self.output = nn.Linear(d_out, d_out, bias=False)
        self.output_norm = nn.LayerNorm(d_out)
        self.shortcut = Projection(d_in, d_out) if d_in != d_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[N, height, width, d_in] to float[N, height, width, d_out]."""
        hidden = F.silu(self.reduce_norm(self.reduce(x)))
        hidden = self.spatial(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = F.silu(self.spatial_norm(hidden))
        weights = self.excite(F.silu(self.squeeze(hidden.mean((1, 2), keepdim=True))))
        hidden = self.output_norm(self.output(hidden * torch.sigmoid(weights)))
        return F.silu(hidden + self.shortcut(x))

    @staticmethod
    def count_flops(d_in: int, d_out: int, places: int) -> int:
        """Operations over a grid of so many places."""
        shortcut = d_in * d_out if d_in != d_out else 0
        squeezed = 2 * d_out * max(1, d_in // 4)
        return 2 * (places * (d_in * d_out + 9 * d_out + d_out**2 + shortcut) + squeezed)


class Projection(nn.Module):
    """The shortcut of a block that changes the width."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.output = nn.Linear(d_in, d_out, bias=False)
        self.norm = nn.LayerNorm(d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float[..., d_in] to float[..., d_out]."""
        return self.norm(self.output(x))


def pool_patches(patches: Tensor, grid: int, token_grid: int) -> Tensor:
    """Averages patches over token_grid x token_grid windows that cover the grid.

    Where token_grid divides grid, windows are (grid / token_grid)^2 squares side by side.
    Otherwise window i spans rows floor(i * grid / token_grid) up to, not including,
    ceil((i + 1) * grid / token_grid): 27 -> 12 has windows of 3 or 4 rows, neighbours share
    at most one.

    Args:
        patches: float[N, grid ** 2, D].
        grid: patches along a side.
        token_grid: windows along a side.

    Returns:
        float[N, token_grid ** 2, D].
    """
    channels_first = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(channels_first, token_grid).flatten(2).transpose(1, 2)


CONNECTORS: dict[ConnectorKind, type[Connector]] = {
    ConnectorKind.AVERAGE_POOLING: AveragePooling,
    ConnectorKind.ATTENTION_POOLING: AttentionPooling,
    ConnectorKind.C_ABSTRACTOR: CAbstractor,
    ConnectorKind.MLP: MLPProjector,
}
"""The class of every kind."""


def refuse_incomplete(connectors: Mapping[ConnectorKind, type[Connector]]) -> None:
    """Raises TypeError for a kind without a class, or whose class leaves something out."""
    for kind in ConnectorKind:
        found = connectors.get(kind)
        if found is None or inspect.isabstract(found):
            missing = "itself" if found is None else ", ".join(sorted(found.__abstractmethods__))
            raise TypeError(
                f"connector {kind.value}: found {found.__name__ if found else 'no class'} in "
                f"CONNECTORS, which lacks {missing}; expected a class with __init__, forward and "
                "count_flops. See docs/adding.md."
            )


refuse_incomplete(CONNECTORS)


def build_connector(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> Connector:
    """The connector of a model.

    Source: MM1, Connector ablation; its type mattered little, the number of tokens much.

    Args:
        config: kind and size of the connector.
        vision: the encoder that it reads from.
        d_model: width of the decoder that it writes for.
    """
    return CONNECTORS[config.kind](config, vision, d_model)


def connector_flops(config: ConnectorConfig, vision: VisionConfig, d_model: int) -> int:
    """Operations of a connector's forward pass over one image; for arguments, `build_connector`."""
    return CONNECTORS[config.kind].count_flops(config, vision, d_model)
