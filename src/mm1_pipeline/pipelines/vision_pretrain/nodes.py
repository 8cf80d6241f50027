"""Nodes of `vision_pretrain`: the image encoder's first weights."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.config.pretraining import VisionPretrainConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


@narrowed(config=VisionPretrainConfig.mixture_part)
def plan_vision_mixture(
    config: VisionPretrainConfig, shards: Artifact
) -> tuple[dict[str, Any], StagedArtifact]:
    """Fixes which sequences every global batch holds, if the encoder is trained.

    Their sources are passed on alone, so that another source trains no encoder anew.
    """
    from mm1_pipeline.streams.mixture import link_drawn, plan_part

    planned = plan_part(config, shards.path)
    staged = stage("vision_shards")
    num_sources = link_drawn(planned, shards.path, staged.directory)
    return planned, staged.described(counts={"sources": num_sources})


def pretrain_vision(
    config: VisionPretrainConfig, vision: VisionConfig, shards: Artifact, mixture: dict[str, Any]
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Draws, trains (CLIP or AIM) or imports the image encoder."""
    from mm1_pipeline.training.parts import make_vision_encoder

    staged = stage("vision_encoder")
    rows = make_vision_encoder(
        config,
        vision,
        shards.path,
        expected_mixture=mixture,
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"source": config.source.value, "steps": len(rows)}), rows


@narrowed(config=EvaluateConfig.vision_part)
def evaluate_vision(
    config: EvaluateConfig, pretraining: VisionPretrainConfig, encoder: Artifact, shards: Artifact
) -> dict[str, Any]:
    """Measures a trained encoder at its own task, on what its training never saw."""
    from mm1_pipeline.evaluation.held_out.vision import held_out_vision

    return held_out_vision(config, pretraining, encoder.path, shards.path)
