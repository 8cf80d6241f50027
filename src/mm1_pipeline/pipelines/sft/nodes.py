"""Nodes of `sft`: fine-tuning on conversations."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.stages import SFTConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def fine_tune(
    config: SFTConfig, start: Artifact, sft_shards: Artifact
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Trains encoder, connector and decoder on the answers of conversations."""
    from mm1_pipeline.training.stages import continue_from
    from mm1_pipeline.training.train import train

    staged = stage("sft_model")
    rows = train(
        config,
        continue_from(start.path, sft_shards.path, num_streams=len(config.mixture.streams)),
        sft_shards.path,
        stage="sft",
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"steps": len(rows)}), rows
