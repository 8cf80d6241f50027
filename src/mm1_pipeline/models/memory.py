"""Memory of a training step, from shapes alone.

An estimate of what a step keeps: weights, gradients and optimizer state in float32, and what the
backward pass needs of the activations. Allocator, communication buffers and the kernels' own
workspaces come on top: leave a tenth free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mm1_pipeline.config.model import Activation, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.training import OptimizerKind

FLOAT32 = 4
"""Bytes of a number."""
USABLE_SHARE = 0.9
"""Of a device's memory; the rest is for what is not counted here."""
_KEPT_LOGITS_BYTES = 256 << 20
"""See `models.losses`: more are computed again."""


class Activations(NamedTuple):
    """Bytes that the backward pass needs of one forward pass."""

    vision: int
    decoder: int
    logits: int

    @property
    def total(self) -> int:
        """All of them; the connector's are small beside."""
        return sum(self)


def decoder_layer_bytes(config: DecoderConfig, num_positions: int, *, in_bfloat16: bool) -> int:
    """Activations that one dense layer keeps for the backward pass.

    In float32, per position: each of the two norms its input, its unscaled output, and the scaled
    one that the maps read (6 D); queries, keys and values, heads repeated, and the attention's
    output twice (5 D); of the feed-forward map the gate before and after its non-linearity,
    the other factor, and their product (4 F). In bfloat16 the norms' two inner tensors stay in
    float32, and what the maps read is kept as 2 bytes.

    Args:
        config: Shape of the layer.
        num_positions: Positions of the microbatch, padding included.
        in_bfloat16: Whether autocast keeps most of it in 2 bytes a number, else 4.
    """
    d_model, d_ff = config.d_model, config.d_ff
    if config.moe is not None:
        # An average layer: experts keep what each of their positions does, and its input.
        d_dense, d_expert = d_ff, config.moe.top_k * (config.moe.d_ff or d_ff)
        share = 1 / config.moe.every_n_layers
        d_ff = round((1 - share) * d_dense + share * d_expert)
    if not in_bfloat16:
        return num_positions * FLOAT32 * (11 * d_model + 4 * d_ff)
    norms = 4 * d_model * FLOAT32
    return num_positions * (norms + 2 * (7 * d_model + 4 * d_ff))


def vision_layer_bytes(config: VisionConfig, num_images: int, *, in_bfloat16: bool) -> int:
    """Activations that one encoder layer keeps for the backward pass.

    Per position in float32: each norm its input and output (4 D); queries, keys and values, and
    the attention's output twice (5 D); the feed-forward map before and after its non-linearity
    (2 F, 4 F with a gate).

    Args:
        config: Shape of the layer.
        num_images: Encoded images (sub-images count each) of the microbatch.
        in_bfloat16: Whether autocast keeps most of it in 2 bytes a number, else 4.
    """
    positions = num_images * (config.num_patches + config.class_token)
    num_wide = 4 if config.activation is Activation.SWIGLU else 2
    if not in_bfloat16:
        return positions * FLOAT32 * (9 * config.d_model + num_wide * config.d_ff)
    norms = 2 * config.d_model * FLOAT32
    return positions * (norms + 2 * (7 * config.d_model + num_wide * config.d_ff))


def activation_bytes(
    model: MM1Config,
    num_positions: int,
    num_images: int,
    num_labels: int,
    *,
    in_bfloat16: bool,
    recompute: bool,
) -> Activations:
    """Activations of one microbatch at their peak.

    Args:
        model: Sizes of encoder, connector and decoder.
        num_positions: Of the microbatch, as are the others.
        num_images: Encoded images (sub-images count each) of the microbatch.
        num_labels: Positions that predict a token.
        in_bfloat16: Whether autocast keeps most of it in 2 bytes a number, else 4.
        recompute: Gradient checkpointing: a layer keeps its input, and one at a time is whole.
    """
    how = {"in_bfloat16": in_bfloat16, "recompute": recompute}
    vision_config = model.vision
    vision = vision_layer_bytes(vision_config, num_images, in_bfloat16=in_bfloat16)
    patches = num_images * (vision_config.num_patches + vision_config.class_token)
    layers = vision_config.num_built_layers
    if recompute:
        vision += layers * patches * vision_config.d_model * FLOAT32
    else:
        vision *= layers
    # Outside the layers: pixels as patches, the norm before the first and after the last layer.
    vision += patches * FLOAT32 * (3 * vision_config.patch_size**2 + 3 * vision_config.d_model)
    return Activations(vision, *decoder_bytes(model.decoder, num_positions, num_labels, **how))


def decoder_bytes(
    config: DecoderConfig,
    num_positions: int,
    num_labels: int,
    *,
    in_bfloat16: bool,
    recompute: bool,
) -> tuple[int, int]:
    """Of a decoder, and of its logits; for arguments see `activation_bytes`."""
    decoder = decoder_layer_bytes(config, num_positions, in_bfloat16=in_bfloat16)
    if recompute:
        # The stream between layers stays in float32 under autocast.
        decoder += config.num_layers * num_positions * config.d_model * FLOAT32
    else:
        decoder *= config.num_layers
    # Outside the layers: embeddings, and the final norm with what it passes on.
    decoder += num_positions * FLOAT32 * 4 * config.d_model
    return decoder, min(num_labels * config.vocab_size * FLOAT32, _KEPT_LOGITS_BYTES)


def state_bytes(num_parameters: int, optimizer: OptimizerKind) -> int:
    """Weights, gradients and the optimizer's moments.

    Args:
        num_parameters: Of the whole model; ranks share the outcome evenly.
        optimizer: AdamW keeps two numbers a weight, AdaFactor a row and a column a matrix, which
            are nothing beside.
    """
    states = 2 if optimizer is OptimizerKind.ADAMW else 0
    return (2 + states) * FLOAT32 * num_parameters


def largest_microbatch(
    num_rows: int, activations: Callable[[int], int], free_bytes: float
) -> int | None:
    """The most sequences of a rank's batch that one forward and backward pass can take.

    Args:
        num_rows: Sequences of a rank's batch.
        activations: Bytes that so many sequences keep; more keep more.
        free_bytes: What the device has for them.

    Returns:
        The size that cuts the batch into as few and as even parts as fit; None if not even one
        sequence does.
    """
    fitting, too_many = 0, num_rows + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if activations(middle) <= free_bytes:
            fitting = middle
        else:
            too_many = middle
    if not fitting:
        return None
    num_parts = -(-num_rows // fitting)
    return -(-num_rows // num_parts)
