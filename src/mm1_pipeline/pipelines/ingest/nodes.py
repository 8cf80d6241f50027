"""Nodes of `ingest`: raw sources to clean records."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def ingest_sources(config: IngestConfig) -> tuple[StagedArtifact, dict[str, Any]]:
    """Reads, filters and de-duplicates every source; what is dropped is counted."""
    from mm1_pipeline.corpus.ingest import ingest
    from mm1_pipeline.evaluation.captioning.scorers import load_scorer

    staged = stage("records")
    report = ingest(
        config, staged.directory, work_dir=staged.work_directory, load_scorer=load_scorer
    )
    return staged.described(counts=report["totals"]), report
