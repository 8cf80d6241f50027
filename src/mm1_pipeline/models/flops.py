"""Floating-point operations of a training step, from shapes alone.

A product of an m x k and a k x n matrix is 2 m n k operations; norms, activations, softmax and the
optimizer are left out, as is usual. Counted is what the result needs: no padding, no position
across documents, no logits without a label, of a mixture of experts the experts that were
chosen, and no activation computed a second time to save memory. The backward pass of a map that
is trained takes twice the forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mm1_pipeline.config.model import Activation, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.models.connectors import connector_flops
from mm1_pipeline.models.losses import IGNORED

TRAINED = 3
"""Forward and backward pass of a trained map, in forward passes."""


class PackedSizes(NamedTuple):
    """What of a packed batch decides the decoder's work."""

    num_positions: int
    """Of the documents that are counted."""
    num_pairs: int
    """Pairs of a position and one that it attends to (itself and those before)."""
    num_labels: int

    @classmethod
    def of_batch(cls, cu_seqlens: Tensor, labels: Tensor) -> PackedSizes:
        """Counts the documents that have a label; padding has none.

        Args:
            cu_seqlens: int[num_documents + 1], on the CPU.
            labels: int64[B, T], on the CPU.
        """
        labelled = (labels.flatten() != IGNORED).long().cumsum(0)
        borders = cu_seqlens.long()
        before = nn.functional.pad(labelled, (1, 0))[borders]
        lengths = borders.diff()[before.diff() > 0]
        num_pairs = int((lengths * (lengths + 1) // 2).sum())
        return cls(int(lengths.sum()), num_pairs, int(labelled[-1]) if len(labelled) else 0)


def decoder_flops(config: DecoderConfig, sizes: PackedSizes) -> int:
    """Operations of a decoder's forward pass; layers that see a window count as the others.

    Of a dense decoder whose heads, of queries as of keys, are D wide together, and of one document
    of P positions that are all predicted: 2 P L (4 D^2 + 3 D F) for the maps, 2 P (P + 1) D L for
    scores and values, and 2 P D V for the logits, where L is layers, F the inner width and V the
    vocabulary. Logits of positions without a label are not computed, so they do not count.

    Args:
        config: shape of the decoder.
        sizes: positions that count, pairs of them that see each other, labels.
    """
    d_heads, d_kv = (count * config.head_dim for count in (config.num_heads, config.num_kv_heads))
    projections = config.d_model * (2 * d_heads + 2 * d_kv)
    weights = config.num_layers * projections
    for layer in range(config.num_layers):
        moe = config.moe if config.has_experts(layer) else None
        if moe is None:
            weights += 3 * config.d_model * config.d_ff
        else:
            router = config.d_model * moe.num_experts
            weights += router + moe.top_k * 3 * config.d_model * (moe.d_ff or config.d_ff)
            if moe.shared_d_ff is not None:
                weights += config.d_model * (3 * moe.shared_d_ff + 1)
    attention = 4 * sizes.num_pairs * d_heads * config.num_layers  # scores, and values by them
    head = 2 * sizes.num_labels * config.d_model * config.vocab_size
    return 2 * sizes.num_positions * weights + attention + head


def vision_flops(config: VisionConfig) -> int:
    """Operations of an encoder's forward pass over one image."""
    positions = config.num_patches + config.class_token
    num_maps = 3 if config.activation is Activation.SWIGLU else 2
    weights = 4 * config.d_model**2 + num_maps * config.d_model * config.d_ff
    attention = 4 * positions**2 * config.d_model
    patches = 2 * config.num_patches * 3 * config.patch_size**2 * config.d_model
    return patches + config.num_built_layers * (2 * positions * weights + attention)


def training_flops(
    config: MM1Config, sizes: PackedSizes, num_images: int, *, vision_trained: bool = True
) -> int:
    """Operations of a training step of a whole model.

    Args:
        config: shape of the model.
        sizes: positions that count, pairs of them that see each other, labels.
        num_images: encoded images of the batch; sub-images count each.
        vision_trained: False if the encoder is frozen: it then has no backward pass.
    """
    connector = connector_flops(config.connector, config.vision, config.decoder.d_model)
    encoder = vision_flops(config.vision) * (TRAINED if vision_trained else 1)
    return TRAINED * decoder_flops(config.decoder, sizes) + num_images * (
        encoder + TRAINED * connector
    )


def linear_flops(module: nn.Module, num_rows: int) -> int:
    """Operations of a forward pass in which every linear map of a module sees the same rows."""
    maps = (child for child in module.modules() if isinstance(child, nn.Linear))
    return 2 * num_rows * sum(child.weight.numel() for child in maps)
