"""Nodes of `upcycle`: the dense model as a mixture of experts, and trained on as it is."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.stages import UpcycleConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def train_experts(
    config: UpcycleConfig, pretrain: TrainingConfig, pretrained_model: Artifact, shards: Artifact
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Copies dense layers into experts and trains on with the dense hyper-parameters."""
    from mm1_pipeline.training.stages import upcycle_from
    from mm1_pipeline.training.train import train

    staged = stage("upcycled_model")
    rows = train(
        config.training(pretrain),
        upcycle_from(
            config,
            pretrained_model.path,
            shards.path,
            staged.work_directory,
            num_streams=len(pretrain.mixture.streams),
        ),
        shards.path,
        stage="upcycle",
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"steps": len(rows)}), rows


@narrowed(config=UpcycleConfig.training_part)
def train_dense_control(
    config: UpcycleConfig, pretrain: TrainingConfig, pretrained_model: Artifact, shards: Artifact
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Trains the dense model on with the same batches, for a comparison at equal tokens."""
    from mm1_pipeline.training.stages import continue_from
    from mm1_pipeline.training.train import train

    staged = stage("dense_control_model")
    rows = train(
        config.training(pretrain),
        continue_from(pretrained_model.path, shards.path),
        shards.path,
        stage="dense_control",
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"steps": len(rows)}), rows
