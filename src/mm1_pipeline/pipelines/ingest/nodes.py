"""Nodes of `ingest`: raw sources to clean records, apart for what they are for.

Pre-training and fine-tuning share nothing but what they must not contain, so that another source
of the one makes nothing of the other stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage

Ingested = tuple[StagedArtifact, dict[str, Any]]
"""Staged records and the report on their sources."""


@narrowed(config=IngestConfig.evaluation_part)
def ingest_evaluation(config: IngestConfig) -> Ingested:
    """Reads what models are evaluated on; training data is compared with it."""
    return _ingest("evaluation_records", config)


@narrowed(config=IngestConfig.pretraining_part)
def ingest_pretraining(config: IngestConfig, evaluation_records: Artifact) -> Ingested:
    """Reads, filters and de-duplicates captions, interleaved documents and text."""
    return _ingest("records", config, evaluation_records)


@narrowed(config=IngestConfig.conversation_part)
def ingest_conversations(config: IngestConfig, evaluation_records: Artifact) -> Ingested:
    """Reads, filters and de-duplicates the conversations of fine-tuning."""
    return _ingest("sft_records", config, evaluation_records)


@narrowed(names=IngestConfig.source_names)
def report_sources(
    names: list[str],
    evaluation: Mapping[str, Any],
    pretraining: Mapping[str, Any],
    conversations: Mapping[str, Any],
) -> dict[str, Any]:
    """Puts the reports on all sources together."""
    from mm1_pipeline.corpus.ingest import join_reports

    return join_reports([evaluation, pretraining, conversations], names)


def _ingest(output: str, config: IngestConfig, evaluation: Artifact | None = None) -> Ingested:
    from mm1_pipeline.corpus.ingest import ingest, without_records
    from mm1_pipeline.evaluation.captioning.scorers import load_scorer

    staged = stage(output)
    report = ingest(
        config,
        staged.directory,
        evaluation_dir=None if evaluation is None else evaluation.path,
        work_dir=staged.work_directory,
        part=staged.workspace.part,
        load_scorer=load_scorer,
    )
    if problems := without_records(report):
        raise ValueError("\n".join(problems))
    return staged.described(counts=report["totals"]), report
