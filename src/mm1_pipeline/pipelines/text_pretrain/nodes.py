"""Nodes of `text_pretrain`: the decoder's first weights."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.config.pretraining import TextPretrainConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


@narrowed(config=TextPretrainConfig.mixture_part)
def plan_text_mixture(
    config: TextPretrainConfig, shards: Artifact
) -> tuple[dict[str, Any], StagedArtifact]:
    """Fixes which sequences every global batch holds, if the decoder is trained.

    Their sources are passed on alone, so that another source trains no decoder anew.
    """
    from mm1_pipeline.streams.mixture import link_drawn, plan_part

    planned = plan_part(config, shards.path)
    staged = stage("text_shards")
    num_sources = link_drawn(planned, shards.path, staged.directory)
    return planned, staged.described(counts={"sources": num_sources})


def pretrain_text(
    config: TextPretrainConfig, decoder: DecoderConfig, shards: Artifact, mixture: dict[str, Any]
) -> tuple[StagedArtifact, list[dict[str, Any]]]:
    """Draws, trains (next token on the text stream) or imports the decoder."""
    from mm1_pipeline.training.parts import make_decoder

    staged = stage("text_decoder")
    rows = make_decoder(
        config,
        decoder,
        shards.path,
        expected_mixture=mixture,
        work_dir=staged.work_directory,
        output_dir=staged.directory,
    )
    return staged.described(counts={"source": config.source.value, "steps": len(rows)}), rows
