"""Nodes of `pretrain`: the multimodal pre-training."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


@narrowed(config=TrainingConfig.mixture_part)
def plan_mixture(config: TrainingConfig, shards: Artifact) -> dict[str, Any]:
    """Fixes which sequences every global batch holds, before anything is trained."""
    from mm1_pipeline.streams.mixture import MixtureSnapshot

    return MixtureSnapshot.of_training(config, shards.path).describe()


def pretrain_model(
    config: TrainingConfig,
    model: MM1Config,
    shards: Artifact,
    mixture: dict[str, Any],
    vision_encoder: Artifact,
    text_decoder: Artifact,
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Trains encoder, connector and decoder together."""
    from mm1_pipeline.models.next_token import NextToken
    from mm1_pipeline.training.parts import initial_model
    from mm1_pipeline.training.train import train

    staged = stage("pretrained_model")
    parts = {"vision_dir": vision_encoder.path, "decoder_dir": text_decoder.path}
    rows = train(
        config,
        NextToken(initial_model(model, shards.path, **parts, seed=config.seed)),
        shards.path,
        stage="pretrain",
        expected_mixture=mixture,
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"steps": len(rows)}), rows
