"""Parameters of the stages that start from a trained model: `sft` and `upcycle`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from mm1_pipeline.config._base import Count, Seed, bounds, only, parameters
from mm1_pipeline.config.model import MoEConfig
from mm1_pipeline.config.training import (
    OptimizerConfig,
    OptimizerKind,
    ScheduleConfig,
    TrainingConfig,
)


class SFTStart(StrEnum):
    """The model that fine-tuning starts from."""

    PRETRAIN = "pretrain"
    """The dense model."""
    UPCYCLE = "upcycle"
    """The mixture of experts."""


@parameters
class SFTConfig(TrainingConfig):
    """Parameters of the stage `sft`: supervised fine-tuning on conversations.

    Source: MM1, SFT (10k steps of 256 sequences, AdaFactor, peak 1e-5, cosine; encoder and
    decoder unfrozen). Warm-up, the schedule's end and no weight decay are our choice.
    """

    init_from: SFTStart = SFTStart.PRETRAIN
    """Only the model that is named becomes a dependency of the stage."""
    optimizer: OptimizerConfig = OptimizerConfig(
        kind=OptimizerKind.ADAFACTOR, learning_rate=1e-5, weight_decay=0.0
    )
    schedule: ScheduleConfig = ScheduleConfig(
        num_steps=10_000, warmup_steps=300, final_fraction=0.0
    )
    global_batch_size: Count = 256


@parameters
class UpcycleConfig:
    """Parameters of the stage `upcycle`: a dense model becomes a mixture of experts, trained on.

    Everything else of the training (mixture, batch, learning rate, optimizer) is that of
    `pretrain`.

    Source: MM1, Mixture of experts (the dense model's hyper-parameters); deviation: that the
    experts start from the dense model's weights, and the schedule, are our choice.
    """

    moe: MoEConfig
    schedule: ScheduleConfig
    """Of the training that follows: warm-up and decay anew."""
    expert_noise: Annotated[float, bounds(ge=0, le=1_000)] = 0.0
    """Standard deviation of what is added to each expert's weights, in units of each weight
    matrix's own. 0 keeps the dense model's output exactly."""
    drop_fraction: Annotated[float, bounds(ge=0, lt=1)] = 0.0
    """Share of each expert's hidden units that are drawn anew, others for each expert
    (Drop-Upcycling, arXiv 2502.19261). 0 keeps the dense model's output exactly."""
    seed: Seed = 1
    """Of the router, noise and drawn units, and of the order of the training data."""

    def __post_init__(self) -> None:
        if self.moe.d_ff is not None:
            raise ValueError(
                f"moe.d_ff: found {self.moe.d_ff}, expected null: experts are copies of the dense "
                "layer and have its width."
            )

    def training_part(self) -> UpcycleConfig:
        """What the training depends on, and with it a model without experts."""
        return only(self, "schedule", "seed")

    def training(self, pretrain: TrainingConfig) -> TrainingConfig:
        """The training that follows: that of the dense model but for schedule and order."""
        values = {name: getattr(pretrain, name) for name in pretrain.__dataclass_fields__}
        return TrainingConfig(**{**values, "schedule": self.schedule, "seed": self.seed})
