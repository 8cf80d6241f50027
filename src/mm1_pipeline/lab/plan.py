"""What a pre-training will take: parameters, operations, memory, hours, cost, data.

Counts are exact for the shapes (`models.flops`, weights on torch's meta device). Memory is an
estimate of what a step keeps: weights, gradients and optimizer state in float32, and what the
backward pass needs of the activations. Allocator, communication buffers and the kernels' own
workspaces come on top: leave a tenth free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mm1_pipeline.config.model import Activation, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.plan import ClusterConfig
from mm1_pipeline.config.shard import PackingConfig, ShardConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.config.validation import build_parameters
from mm1_pipeline.ground.devices import DeviceLimits, device_limits
from mm1_pipeline.models.connectors import connector_flops
from mm1_pipeline.models.flops import (
    TRAINED,
    PackedSizes,
    decoder_flops,
    training_flops,
    vision_flops,
)
from mm1_pipeline.models.mm1 import MM1

GIB = 1 << 30

_FLOAT32 = 4
_ADAM_STATES = 2
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


def plan_environment(parameters: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Plans `pretrain` from raw parameters.

    Args:
        parameters: Of an environment, by group.
        cluster: Values that replace those of the group `cluster`.

    Raises:
        ParameterError: A parameter cannot be used.
    """
    found = {**parameters.get("cluster", {}), **cluster}
    return plan_pretraining(
        build_parameters(MM1Config, "model", parameters["model"]),
        build_parameters(ShardConfig, "shard", parameters["shard"]).packing,
        build_parameters(TrainingConfig, "pretrain", parameters["pretrain"]),
        build_parameters(ClusterConfig, "cluster", found),
    )


def plan_pretraining(
    model: MM1Config, packing: PackingConfig, training: TrainingConfig, cluster: ClusterConfig
) -> dict[str, Any]:
    """Plans `pretrain` for an environment and a cluster.

    Args:
        model: Its shapes.
        packing: Positions and images of a sequence.
        training: Batch, steps, precision.
        cluster: Devices and what is assumed of the data.

    Returns:
        JSON values: parameters, flops, memory, time, data, assumptions.
    """
    images = _images_per_sequence(packing, cluster)
    counts = count_parameters(model)
    step = _step_sizes(packing, training, cluster)
    num_images = round(images * training.global_batch_size)
    flops = training_flops(model, step, num_images)
    peak = _limits(cluster).peak(training.precision)
    assert peak is not None, cluster.device
    speed = cluster.model_flops_utilisation * peak * cluster.num_devices
    seconds = flops / speed
    steps = training.schedule.num_steps
    hours = steps * seconds / 3600
    positions = steps * step.num_positions
    image_positions = steps * num_images * packing.image_tokens
    return {
        "parameters": counts,
        "flops_per_step": {
            "vision": TRAINED * num_images * vision_flops(model.vision),
            "connector": TRAINED
            * num_images
            * connector_flops(model.connector, model.vision, model.decoder.d_model),
            "decoder": TRAINED * decoder_flops(model.decoder, step),
            "total": flops,
        },
        "memory": _memory(model, packing, training, cluster, images, counts["total"]),
        "time": {
            "seconds_per_step": seconds,
            "positions_per_second": step.num_positions / seconds,
            "hours": hours,
            "device_hours": hours * cluster.num_devices,
            "cost": None
            if cluster.price_per_device_hour is None
            else hours * cluster.num_devices * cluster.price_per_device_hour,
        },
        "data": {
            "sequences": steps * training.global_batch_size,
            "positions": positions,
            "text_tokens": positions - image_positions,
            "images": steps * num_images,
            "image_bytes": steps * num_images * cluster.bytes_per_image,
        },
        "assumptions": {
            "device": cluster.device.value,
            "num_devices": cluster.num_devices,
            "peak_flops": peak,
            "model_flops_utilisation": cluster.model_flops_utilisation,
            "precision": training.precision,
            "images_per_sequence": images,
            "labelled_share": cluster.labelled_share,
            "document": "one a sequence, which counts most attention",
        },
    }


def count_parameters(model: MM1Config) -> dict[str, int]:
    """Counts weights by part, without making any.

    Returns:
        vision, connector, embeddings, decoder (dense layers, without embeddings), experts,
        total, and active: those that compute one position.
    """
    with torch.device("meta"):
        built = MM1(model, image_token_id=0)
    config = model.decoder
    total = sum(weight.numel() for weight in built.parameters())
    vision, connector, decoder = (
        sum(weight.numel() for weight in part.parameters())
        for part in (built.vision, built.connector, built.decoder)
    )
    embeddings = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    experts = sum(
        weight.numel() for name, weight in built.named_parameters() if ".experts." in name
    )
    idle = config.num_parameters - config.num_active_parameters
    return {
        "vision": vision,
        "connector": connector,
        "embeddings": embeddings,
        "decoder": decoder - embeddings - experts,
        "experts": experts,
        "total": total,
        "active": total - idle,
    }


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
        return num_positions * _FLOAT32 * (11 * d_model + 4 * d_ff)
    norms = 4 * d_model * _FLOAT32
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
        return positions * _FLOAT32 * (9 * config.d_model + num_wide * config.d_ff)
    norms = 2 * config.d_model * _FLOAT32
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
    decoder = decoder_layer_bytes(model.decoder, num_positions, in_bfloat16=in_bfloat16)
    vision = vision_layer_bytes(model.vision, num_images, in_bfloat16=in_bfloat16)
    patches = num_images * (model.vision.num_patches + model.vision.class_token)
    layers, encoder_layers = model.decoder.num_layers, model.vision.num_built_layers
    if recompute:
        # The stream between layers stays in float32 under autocast.
        decoder += layers * num_positions * model.decoder.d_model * _FLOAT32
        vision += encoder_layers * patches * model.vision.d_model * _FLOAT32
    else:
        decoder *= layers
        vision *= encoder_layers
    # Outside the layers: pixels as patches, the norm before the first and after the last layer;
    # embeddings, and the final norm with what it passes on.
    vision += patches * _FLOAT32 * (3 * model.vision.patch_size**2 + 3 * model.vision.d_model)
    decoder += num_positions * _FLOAT32 * 4 * model.decoder.d_model
    logits = min(num_labels * model.decoder.vocab_size * _FLOAT32, _KEPT_LOGITS_BYTES)
    return Activations(vision, decoder, logits)


def _memory(
    model: MM1Config,
    packing: PackingConfig,
    training: TrainingConfig,
    cluster: ClusterConfig,
    images: float,
    num_parameters: int,
) -> list[dict[str, Any]]:
    """A row for each way to lay a training out."""
    per_device = max(1, training.global_batch_size // cluster.num_devices)
    microbatch = min(training.microbatch_size or per_device, per_device)
    positions = microbatch * packing.sequence_length
    memory = _limits(cluster).memory_gib
    assert memory is not None, cluster.device
    rows = []
    for sharded in (False, True) if cluster.num_devices > 1 else (False,):
        shards = cluster.num_devices if sharded else 1
        weights = num_parameters * _FLOAT32 / shards
        for recompute in (False, True):
            activations = activation_bytes(
                model,
                positions,
                round(microbatch * images),
                round(positions * cluster.labelled_share),
                in_bfloat16=training.precision == "bfloat16",
                recompute=recompute,
            ).total
            total = (2 + _ADAM_STATES) * weights + activations
            rows.append(
                {
                    "sharded": sharded,
                    "gradient_checkpointing": recompute,
                    "microbatch_size": microbatch,
                    "weights_gib": weights / GIB,
                    "gradients_gib": weights / GIB,
                    "optimizer_gib": _ADAM_STATES * weights / GIB,
                    "activations_gib": activations / GIB,
                    "total_gib": total / GIB,
                    "fits": total < 0.9 * memory * GIB,
                }
            )
    return rows


def _limits(cluster: ClusterConfig) -> DeviceLimits:
    limits = device_limits(cluster.device.value.upper())
    assert limits is not None, cluster.device
    return limits


def _images_per_sequence(packing: PackingConfig, cluster: ClusterConfig) -> float:
    if cluster.images_per_sequence is not None:
        return cluster.images_per_sequence
    return min(packing.max_images, packing.sequence_length / (2 * packing.image_tokens))


def _step_sizes(
    packing: PackingConfig, training: TrainingConfig, cluster: ClusterConfig
) -> PackedSizes:
    length, batch = packing.sequence_length, training.global_batch_size
    return PackedSizes(
        num_positions=batch * length,
        num_pairs=batch * length * (length + 1) // 2,
        num_labels=round(batch * length * cluster.labelled_share),
    )
