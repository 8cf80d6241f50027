"""Nodes of `synthesize`: second captions for the same images."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def synthesize_captions(
    config: SynthesisConfig, records: Artifact
) -> tuple[StagedArtifact, dict[str, Any]]:
    """Writes a source of captions from alt text and visual concepts, or none if none is asked."""
    from mm1_pipeline.corpus.synthesis.synthesize import synthesize
    from mm1_pipeline.evaluation.captioning.caption_writer import make_concept_sources, make_writer

    staged = stage("synthetic_records")
    concepts = make_concept_sources(config)
    report = synthesize(config, make_writer(config), records.path, staged.directory, concepts)
    return staged.described(counts=report), report
