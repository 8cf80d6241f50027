"""Nodes of `vision_pretrain`: the image encoder's first weights."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.config.pretraining import VisionPretrainConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.staleness.artifacts import Artifact


def pretrain_vision(
    config: VisionPretrainConfig, vision: VisionConfig, shards: Artifact
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Draws, trains (CLIP or AIM) or imports the image encoder."""
    from mm1_pipeline.training.parts import make_vision_encoder

    staged = stage("vision_encoder")
    rows = make_vision_encoder(
        config,
        vision,
        shards.path,
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"source": config.source.value, "steps": len(rows)}), rows
