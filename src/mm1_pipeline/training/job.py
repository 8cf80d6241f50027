"""What a rank has to know of a training, as data: typed, checked, and never unpickled.

A job travels as JSON from the process that leads a training to its ranks, on this machine and on
others. It holds parameters and paths only; an objective is described by what it is built from, and
its weights are in a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError

from mm1_pipeline.config._base import parameters
from mm1_pipeline.config.model import DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.pretraining import AimConfig, ClipConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.models.aim import PatchPrediction
from mm1_pipeline.models.clip import Contrastive
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.next_token import NextTextToken, NextToken
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.models.vit import VisionTransformer
from mm1_pipeline.training.sharding import state_tensors


@parameters
class NextTokenParts:
    """What `NextToken` is built from."""

    kind: Literal["next_token"] = "next_token"
    model: MM1Config
    image_token_id: int
    num_streams: int | None


@parameters
class NextTextTokenParts:
    """What `NextTextToken` is built from."""

    kind: Literal["next_text_token"] = "next_text_token"
    decoder: DecoderConfig
    recompute: bool


@parameters
class ContrastiveParts:
    """What `Contrastive` is built from, without what only `save` needs."""

    kind: Literal["contrastive"] = "contrastive"
    vision: VisionConfig
    recompute: bool
    clip: ClipConfig
    vocab_size: int
    image_token_id: int


@parameters
class PatchPredictionParts:
    """What `PatchPrediction` is built from."""

    kind: Literal["patch_prediction"] = "patch_prediction"
    vision: VisionConfig
    recompute: bool
    aim: AimConfig


ObjectiveParts = Annotated[
    NextTokenParts | NextTextTokenParts | ContrastiveParts | PatchPredictionParts,
    Field(discriminator="kind"),
]


@parameters
class Job:
    """One training, as every rank of it sees it."""

    config: TrainingConfig
    objective: ObjectiveParts
    frozen: tuple[str, ...]
    """Weights that are not trained."""
    weights_file: Path
    """Where rank 0 finds the weights to start from."""
    shards_dir: Path
    stage: str
    work_dir: Path
    device: Literal["cpu", "cuda"]


@parameters
class FileMeeting:
    """Ranks of one machine meet in a file that no other user can open."""

    kind: Literal["file"] = "file"
    file: Path


@parameters
class NetworkMeeting:
    """Ranks of several machines meet at a port of rank 0."""

    kind: Literal["network"] = "network"
    address: str
    port: Annotated[int, Field(ge=1, le=65_535)]


@parameters
class Order:
    """What a launcher hands to each of its ranks."""

    job: Job
    meeting: Annotated[FileMeeting | NetworkMeeting, Field(discriminator="kind")]


_ORDER: TypeAdapter[Order] = TypeAdapter(Order)


def order_as_json(order: Order) -> bytes:
    """An order as it travels."""
    return _ORDER.dump_json(order)


def order_of_json(data: bytes) -> Order:
    """Reads an order, refusing what is no order.

    Raises:
        ValueError: naming the fields that are missing, unknown or of another type.
    """
    try:
        return _ORDER.validate_json(data, strict=True)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)[:3]
        )
        raise ValueError(
            f"Found a training that this installation does not understand ({found}), expected "
            "one of its own. Use the same version of the project on all machines."
        ) from None


def describe(objective: Objective) -> ObjectiveParts:
    """What an objective is built from.

    Raises:
        ValueError: another process could not build it: it is of another class, or does not have
            the weights that its parameters say.
    """
    describe_one = _DESCRIBED.get(type(objective))
    if describe_one is None:
        raise ValueError(_refusal(objective, "which is not one of those known to training.job"))
    parts = describe_one(objective)
    wanted, found = _layout(build_on_meta(parts)), _layout(objective)
    if list(wanted.items()) != list(found.items()):
        names = sorted(dict(wanted.items() ^ found.items())) or ["the order of its weights"]
        raise ValueError(_refusal(objective, f"whose parameters give others: {names[0]}"))
    return parts


def build_on_meta(parts: ObjectiveParts) -> Objective:
    """Builds an objective without weights: its tensors lie on `meta`."""
    with torch.device("meta"):
        if isinstance(parts, NextTokenParts):
            return NextToken(MM1(parts.model, parts.image_token_id), parts.num_streams)
        if isinstance(parts, NextTextTokenParts):
            return NextTextToken(Decoder(parts.decoder, recompute=parts.recompute))
        vision = VisionTransformer(parts.vision, recompute=parts.recompute)
    # Both draw weights of their own, for which `meta` has no generator; the weights are replaced.
    if isinstance(parts, PatchPredictionParts):
        return PatchPrediction(vision, parts.aim, seed=0).to("meta")
    return Contrastive(
        vision,
        parts.clip,
        vocab_size=parts.vocab_size,
        image_token_id=parts.image_token_id,
        seed=0,
    ).to("meta")


def build_without_weights(job: Job) -> Objective:
    """A job's objective on `meta`, with the weights frozen that are."""
    objective = build_on_meta(job.objective)
    for name in job.frozen:
        objective.get_parameter(name).requires_grad_(False)
    return objective


def frozen_weights(objective: Objective) -> tuple[str, ...]:
    """Names of the weights that are not trained."""
    return tuple(name for name, weight in objective.named_parameters() if not weight.requires_grad)


def _of_next_token(objective: NextToken) -> NextTokenParts:
    model = objective.model
    if type(model) is not MM1:
        raise ValueError(_refusal(objective, f"whose model is a {type(model).__name__}"))
    return NextTokenParts(
        model=model.config,
        image_token_id=model.image_token_id,
        num_streams=objective._num_streams,
    )


def _of_contrastive(objective: Contrastive) -> ContrastiveParts:
    return ContrastiveParts(
        vision=objective.vision.config,
        recompute=objective.vision.recompute,
        clip=objective.clip,
        vocab_size=objective.vocab_size,
        image_token_id=objective.image_token_id,
    )


_DESCRIBED: dict[type[Objective], Callable[[Any], ObjectiveParts]] = {
    NextToken: _of_next_token,
    NextTextToken: lambda objective: NextTextTokenParts(
        decoder=objective.decoder.config, recompute=objective.decoder.recompute
    ),
    Contrastive: _of_contrastive,
    PatchPrediction: lambda objective: PatchPredictionParts(
        vision=objective.vision.config, recompute=objective.vision.recompute, aim=objective.aim
    ),
}


def _layout(objective: Objective) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state_tensors(objective)}


def _refusal(objective: Objective, why: str) -> str:
    return (
        f"Found the objective {type(objective).__name__}, {why}, expected one that another process "
        "can build from its parameters: nothing else is sent to ranks. Train it in one process "
        "(num_processes: 1), or describe it in training/job.py."
    )
