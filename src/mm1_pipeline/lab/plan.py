"""What a pre-training will take: parameters, operations, memory, hours, cost, data.

Counts are exact for the shapes (`models.flops`, weights on torch's meta device). Memory is the
estimate of `models.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mm1_pipeline.config.model import MM1Config
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
from mm1_pipeline.models.memory import (
    FLOAT32,
    USABLE_SHARE,
    activation_bytes,
    largest_microbatch,
    state_bytes,
)
from mm1_pipeline.models.mm1 import MM1

GIB = 1 << 30


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
    memory = _limits(cluster).memory_gib
    assert memory is not None, cluster.device
    rows = []
    for sharded in (False, True) if cluster.num_devices > 1 else (False,):
        shards = cluster.num_devices if sharded else 1
        states = state_bytes(num_parameters, training.optimizer.kind) / shards
        for recompute in (False, True):

            def activations(num_sequences: int, *, recompute: bool = recompute) -> int:
                positions = num_sequences * packing.sequence_length
                return activation_bytes(
                    model,
                    positions,
                    round(num_sequences * images),
                    round(positions * cluster.labelled_share),
                    in_bfloat16=training.precision == "bfloat16",
                    recompute=recompute,
                ).total

            free = USABLE_SHARE * memory * GIB - states
            wanted = training.microbatch_size
            chosen = min(wanted, per_device) if wanted else None
            chosen = chosen or largest_microbatch(per_device, activations, free) or 1
            weights = num_parameters * FLOAT32 / shards
            rows.append(
                {
                    "sharded": sharded,
                    "gradient_checkpointing": recompute,
                    "microbatch_size": chosen,
                    "weights_gib": weights / GIB,
                    "gradients_gib": weights / GIB,
                    "optimizer_gib": (states - 2 * weights) / GIB,
                    "activations_gib": activations(chosen) / GIB,
                    "total_gib": (states + activations(chosen)) / GIB,
                    "fits": activations(chosen) < free,
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
