"""What an environment's trainings will take: parameters, operations, memory, hours, cost, disk.

Counts are exact for the shapes (`models.flops`, weights on torch's meta device). Memory is the
estimate of `models.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mm1_pipeline.config.model import DecoderConfig, MM1Config
from mm1_pipeline.config.plan import ClusterConfig
from mm1_pipeline.config.pretraining import (
    TextPretrainConfig,
    VisionObjective,
    VisionPretrainConfig,
    WeightSource,
)
from mm1_pipeline.config.shard import PackingConfig, ShardConfig
from mm1_pipeline.config.stages import SFTConfig, SFTStart, UpcycleConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.config.validation import ParameterError, build_parameters
from mm1_pipeline.ground.devices import DeviceLimits, device_limits
from mm1_pipeline.ground.formatting import nearest
from mm1_pipeline.models.aim import PatchPrediction
from mm1_pipeline.models.clip import Contrastive
from mm1_pipeline.models.connectors import connector_flops
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.flops import (
    TRAINED,
    PackedSizes,
    decoder_flops,
    linear_flops,
    vision_flops,
)
from mm1_pipeline.models.memory import (
    FLOAT32,
    USABLE_SHARE,
    activation_bytes,
    decoder_bytes,
    largest_microbatch,
    state_bytes,
)
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.vit import VisionTransformer

GIB = 1 << 30
_POSITION_BYTES = 5
"""What a shard holds of a position: its token (int32) and whether it is predicted (uint8)."""


@dataclass(frozen=True)
class _Workload:
    """What one step of a training computes, by part, and what it keeps for the backward pass."""

    parameters: Mapping[str, int]
    flops: Mapping[str, int]
    """Of a step, by part; of parts that are trained, with the backward pass."""
    num_images: int
    """Encoded images of a step."""
    activations: Callable[[int, bool], int] | None
    """Bytes for a number of sequences, with or without recomputing; None where nobody counted."""


def plan_environment(parameters: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Plans every training of the default run from raw parameters.

    Args:
        parameters: Of an environment, by group.
        cluster: Values that replace those of the group `cluster`.

    Returns:
        JSON values: `stages`, each as `plan_training` gives it; `evaluation`, of each model whether
        its weights fit a device; `total`; `assumptions`.

    Raises:
        ParameterError: A parameter cannot be used, or the devices do not divide a batch.
    """

    def group(cls: type[Any], name: str) -> Any:
        return build_parameters(cls, name, parameters[name])

    model: MM1Config = group(MM1Config, "model")
    packing: PackingConfig = group(ShardConfig, "shard").packing
    pretrain: TrainingConfig = group(TrainingConfig, "pretrain")
    sft: SFTConfig = group(SFTConfig, "sft")
    upcycle: UpcycleConfig = group(UpcycleConfig, "upcycle")
    vision: VisionPretrainConfig = group(VisionPretrainConfig, "vision_pretrain")
    text: TextPretrainConfig = group(TextPretrainConfig, "text_pretrain")
    given = {**parameters.get("cluster", {}), **cluster}
    devices = build_parameters(ClusterConfig, "cluster", given)
    batches = {
        "vision_pretrain": vision.training.global_batch_size,
        "text_pretrain": text.training.global_batch_size,
        "pretrain, upcycle and dense_control": pretrain.global_batch_size,
        "sft": sft.global_batch_size,
    }
    for name, source in (("vision_pretrain", vision.source), ("text_pretrain", text.source)):
        if source is not WeightSource.TRAIN:
            del batches[name]
    if "num_devices" not in given:  # Nobody asked for so many.
        common = math.gcd(*batches.values())
        fitting = (count for count in range(devices.num_devices, 0, -1) if common % count == 0)
        devices = replace(devices, num_devices=next(fitting))
    if problems := [
        _undivided(name, batch, devices.num_devices)
        for name, batch in batches.items()
        if batch % devices.num_devices
    ]:
        raise ParameterError("\n".join(problems))

    experts = replace(model, decoder=replace(model.decoder, moe=upcycle.moe))
    chat = experts if sft.init_from is SFTStart.UPCYCLE else model
    chat_packing = group(ShardConfig, "sft_shard").packing
    trained_on = upcycle.training(pretrain)
    stages = {}
    if vision.source is WeightSource.TRAIN:
        stages["vision_pretrain"] = _plan(
            _encoder(model, vision, packing, devices), packing, vision.training, devices
        )
    if text.source is WeightSource.TRAIN:
        stages["text_pretrain"] = _plan(
            _decoder(model.decoder, packing, text.training, devices),
            packing,
            text.training,
            devices,
        )
    stages["pretrain"] = plan_training(model, packing, pretrain, devices)
    stages["upcycle"] = plan_training(experts, packing, trained_on, devices)
    stages["dense_control"] = plan_training(model, packing, trained_on, devices)
    # What is known of the mixture's images says nothing of the conversations'.
    others = replace(devices, images_per_sequence=None)
    stages["sft"] = plan_training(chat, chat_packing, sft, others)

    made_by = {"pretrained": "pretrain", "upcycled": "upcycle"}
    made_by |= {name: name for name in ("dense_control", "sft")}
    return {
        "stages": stages,
        "evaluation": {
            model_name: _asked(stages[stage]["parameters"]["total"], devices)
            for model_name, stage in made_by.items()
        },
        "total": _total(stages, devices),
        "assumptions": {
            "device": devices.device.value,
            "num_devices": devices.num_devices,
            "model_flops_utilisation": devices.model_flops_utilisation,
            "labelled_share": devices.labelled_share,
            "disk_bytes_per_second": devices.disk_bytes_per_second,
            "document": "one a sequence, which counts most attention",
        },
    }


def plan_training(
    model: MM1Config, packing: PackingConfig, training: TrainingConfig, cluster: ClusterConfig
) -> dict[str, Any]:
    """Plans one training of a whole model.

    Args:
        model: Its shapes.
        packing: Positions and images of a sequence.
        training: Batch, steps, precision.
        cluster: Devices and what is assumed of the data.

    Returns:
        JSON values: parameters, flops_per_step, memory, time, data, checkpoint.
    """
    step = _step_sizes(packing, training, cluster)
    images = _images_per_sequence(packing, cluster)
    num_images = round(images * training.global_batch_size)
    connector = connector_flops(model.connector, model.vision, model.decoder.d_model)

    def activations(num_sequences: int, recompute: bool) -> int:
        positions = num_sequences * packing.sequence_length
        return activation_bytes(
            model,
            positions,
            round(num_sequences * images),
            round(positions * cluster.labelled_share),
            in_bfloat16=training.precision == "bfloat16",
            recompute=recompute,
        ).total

    flops = {
        "vision": TRAINED * num_images * vision_flops(model.vision),
        "connector": TRAINED * num_images * connector,
        "decoder": TRAINED * decoder_flops(model.decoder, step),
    }
    work = _Workload(count_parameters(model), flops, num_images, activations)
    return _plan(work, packing, training, cluster)


def count_parameters(model: MM1Config) -> dict[str, int]:
    """Counts weights by part, without making any.

    Returns:
        vision, connector, embeddings, decoder (dense layers, without embeddings), experts,
        total, and active: those that compute one position.
    """
    with torch.device("meta"):
        built = MM1(model, image_token_id=0)
    vision, connector = _count(built.vision), _count(built.connector)
    decoder = _decoder_parameters(model.decoder, built.decoder)
    others = {name: vision + connector + decoder.pop(name) for name in ("total", "active")}
    return {"vision": vision, "connector": connector, **decoder, **others}


def _decoder_parameters(config: DecoderConfig, built: nn.Module) -> dict[str, int]:
    experts = sum(
        weight.numel() for name, weight in built.named_parameters() if ".experts." in name
    )
    embeddings = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    total = _count(built)
    return {
        "embeddings": embeddings,
        "decoder": total - embeddings - experts,
        "experts": experts,
        "total": total,
        "active": total - (config.num_parameters - config.num_active_parameters),
    }


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _decoder(
    config: DecoderConfig, packing: PackingConfig, training: TrainingConfig, cluster: ClusterConfig
) -> _Workload:
    """A decoder alone; sequences of text have a label at every position."""
    with torch.device("meta"):
        built = Decoder(config)
    step = _step_sizes(packing, training, replace(cluster, labelled_share=1.0))

    def activations(num_sequences: int, recompute: bool) -> int:
        positions = num_sequences * packing.sequence_length
        how = {"in_bfloat16": training.precision == "bfloat16", "recompute": recompute}
        return sum(decoder_bytes(config, positions, positions, **how))

    flops = {"decoder": TRAINED * decoder_flops(config, step)}
    return _Workload(_decoder_parameters(config, built), flops, 0, activations)


def _encoder(
    model: MM1Config, config: VisionPretrainConfig, packing: PackingConfig, cluster: ClusterConfig
) -> _Workload:
    """An encoder with what is thrown away, or kept beside it, after its training.

    Texts are taken to fill what images leave of a sequence; comparing them is small beside.
    """
    batch = config.training.global_batch_size
    num_images = round(_images_per_sequence(packing, cluster) * batch)
    flops = {"vision": TRAINED * num_images * vision_flops(model.vision)}
    with torch.device("meta"):
        encoder = VisionTransformer(model.vision)
        if config.objective is VisionObjective.AIM:
            built: nn.Module = PatchPrediction(encoder, config.aim, seed=0)
            head = linear_flops(built.get_submodule("head"), model.vision.num_patches)
            flops["head"] = TRAINED * num_images * head
        else:
            tower = Contrastive(
                encoder,
                config.clip,
                vocab_size=model.decoder.vocab_size,
                image_token_id=0,
                seed=0,
            )
            built = tower
            length = batch * packing.sequence_length - num_images * packing.image_tokens
            text = length // max(1, num_images)
            sizes = PackedSizes(length, num_images * text * (text + 1) // 2, num_labels=0)
            flops["text_tower"] = TRAINED * decoder_flops(tower.text_tower.config, sizes)
    counts = {"vision": _count(encoder), "heads": _count(built) - _count(encoder)}
    return _Workload({**counts, "total": sum(counts.values())}, flops, num_images, None)


def _plan(
    work: _Workload, packing: PackingConfig, training: TrainingConfig, cluster: ClusterConfig
) -> dict[str, Any]:
    peak = _limits(cluster).peak(training.precision)
    assert peak is not None, cluster.device
    total = sum(work.flops.values())
    seconds = total / (cluster.model_flops_utilisation * peak * cluster.num_devices)
    steps = training.schedule.num_steps
    hours = steps * seconds / 3600
    num_positions = training.global_batch_size * packing.sequence_length
    image_positions = steps * work.num_images * packing.image_tokens
    image_bytes = steps * work.num_images * cluster.bytes_per_image
    return {
        "parameters": dict(work.parameters),
        "flops_per_step": {**work.flops, "total": total},
        "memory": _memory(work, training, cluster),
        "time": {
            "steps": steps,
            "seconds_per_step": seconds,
            "positions_per_second": num_positions / seconds,
            "hours": hours,
            "device_hours": hours * cluster.num_devices,
            "cost": _cost(hours, cluster),
        },
        "data": {
            "sequences": steps * training.global_batch_size,
            "positions": steps * num_positions,
            "text_tokens": steps * num_positions - image_positions,
            "images": steps * work.num_images,
            "image_bytes": image_bytes,
            "shard_bytes_if_seen_once": image_bytes + steps * num_positions * _POSITION_BYTES,
        },
        "checkpoint": _checkpoint(work.parameters["total"], training, seconds, cluster),
        "assumptions": {
            "peak_flops": peak,
            "precision": training.precision,
            "images_per_sequence": work.num_images / training.global_batch_size,
        },
    }


def _checkpoint(
    num_parameters: int, training: TrainingConfig, seconds: float, cluster: ClusterConfig
) -> dict[str, float]:
    """Weights and the optimizer's state, gathered on the first rank's host and written there."""
    # All that a training keeps but the gradients.
    size = state_bytes(num_parameters, training.optimizer.kind) - num_parameters * FLOAT32
    write = size / cluster.disk_bytes_per_second
    interval = training.checkpoint.interval_steps * seconds
    if (minutes := training.checkpoint.interval_minutes) is not None:
        interval = min(interval, 60 * minutes)
    return {
        "gib": size / GIB,
        # One more than are kept: the old ones stay until the new one is whole.
        "disk_gib": (training.checkpoint.keep + 1) * size / GIB,
        "host_memory_gib": size / GIB,
        "hours_between": interval / 3600,
        "seconds_to_write": write,
        "share_of_time": write / (write + interval),
    }


def _asked(num_parameters: int, cluster: ClusterConfig) -> dict[str, Any]:
    """Weights that a device holds whole when a model is asked: float32, whatever is computed in."""
    memory = _limits(cluster).memory_gib
    assert memory is not None, cluster.device
    weights = num_parameters * FLOAT32 / GIB
    return {"weights_gib": weights, "fits": weights < USABLE_SHARE * memory}


def _total(stages: Mapping[str, Mapping[str, Any]], cluster: ClusterConfig) -> dict[str, Any]:
    hours = sum(stage["time"]["hours"] for stage in stages.values())
    return {
        "hours": hours,
        "device_hours": hours * cluster.num_devices,
        "cost": _cost(hours, cluster),
    }


def _cost(hours: float, cluster: ClusterConfig) -> float | None:
    price = cluster.price_per_device_hour
    return None if price is None else hours * cluster.num_devices * price


def _undivided(stage: str, batch: int, num_devices: int) -> str:
    possible = (count for count in range(1, batch + 1) if batch % count == 0)
    return (
        f"cluster.num_devices: found {num_devices}, expected a number that divides the batch of "
        f"{batch} sequences of {stage}; nearest possible: {nearest(possible, num_devices)}."
    )


def _memory(
    work: _Workload, training: TrainingConfig, cluster: ClusterConfig
) -> list[dict[str, Any]]:
    """A row for each way to lay a training out; none where activations are not counted."""
    if work.activations is None:
        return []
    num_parameters = work.parameters["total"]
    per_device = max(1, training.global_batch_size // cluster.num_devices)
    memory = _limits(cluster).memory_gib
    assert memory is not None, cluster.device
    rows = []
    for sharded in (False, True) if cluster.num_devices > 1 else (False,):
        shards = cluster.num_devices if sharded else 1
        states = state_bytes(num_parameters, training.optimizer.kind) / shards
        free = USABLE_SHARE * memory * GIB - states
        weights = num_parameters * FLOAT32 / shards
        for recompute in (False, True):

            def kept(num_sequences: int, *, recompute: bool = recompute) -> int:
                assert work.activations is not None
                return work.activations(num_sequences, recompute)

            wanted = training.microbatch_size
            chosen = min(wanted, per_device) if wanted else None
            chosen = chosen or largest_microbatch(per_device, kept, free) or 1
            rows.append(
                {
                    "sharded": sharded,
                    "gradient_checkpointing": recompute,
                    "microbatch_size": chosen,
                    "weights_gib": weights / GIB,
                    "gradients_gib": weights / GIB,
                    "optimizer_gib": (states - 2 * weights) / GIB,
                    "activations_gib": kept(chosen) / GIB,
                    "total_gib": (states + kept(chosen)) / GIB,
                    "fits": kept(chosen) < free,
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
