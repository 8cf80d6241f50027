"""Nodes of `ingest`: raw sources to clean records, apart for what they are for.

Pre-training and fine-tuning share nothing but what they must not contain, so that another source
of the one makes nothing of the other stale.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage

Ingested = tuple[StagedArtifact, dict[str, Any]]
"""Staged records and the report on their sources."""


@narrowed(config=IngestConfig.evaluation_part)
def ingest_evaluation(config: IngestConfig) -> Ingested:
    """Reads what models are evaluated on; training data is compared with it."""
    return _ingest("evaluation_records", config)


@narrowed(config=IngestConfig.index_part, evaluate=EvaluateConfig.benchmark_part)
def index_evaluation(
    config: IngestConfig, evaluate: EvaluateConfig, evaluation_records: Artifact
) -> StagedArtifact:
    """Reads the files of benchmarks too; what all of these hold, training data must not."""
    from mm1_pipeline.corpus.decontamination import build_index, index_problems, items_of
    from mm1_pipeline.corpus.records import read_records, read_sources
    from mm1_pipeline.evaluation.benchmarks import read_benchmarks

    rules, folder = config.decontamination, evaluation_records.path
    benchmarks = evaluate.benchmarks(rules.compares_with)
    records = (record for name in read_sources(folder) for record in read_records(folder, name))
    staged = stage("evaluation_index")
    items = itertools.chain(items_of(records), read_benchmarks(evaluate, benchmarks))
    summary = build_index(items, rules, staged.directory)
    if problems := index_problems(summary, rules, benchmarks):
        raise ValueError("\n".join(problems))
    counts = ("records", "images", "texts", "ngrams")
    return staged.described(counts={name: summary[name] for name in counts})


@narrowed(config=IngestConfig.pretraining_part)
def ingest_pretraining(config: IngestConfig, evaluation_index: Artifact) -> Ingested:
    """Reads, filters and de-duplicates captions, interleaved documents and text."""
    return _ingest("records", config, evaluation_index)


@narrowed(config=IngestConfig.conversation_part)
def ingest_conversations(config: IngestConfig, evaluation_index: Artifact) -> Ingested:
    """Reads, filters and de-duplicates the conversations of fine-tuning."""
    return _ingest("sft_records", config, evaluation_index)


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


def _ingest(output: str, config: IngestConfig, index: Artifact | None = None) -> Ingested:
    from mm1_pipeline.corpus.ingest import ingest, without_records
    from mm1_pipeline.evaluation.captioning.scorers import load_scorer

    staged = stage(output)
    report = ingest(
        config,
        staged.directory,
        evaluation_index=None if index is None else index.path,
        work_dir=staged.work_directory,
        part=staged.workspace.part,
        load_scorer=load_scorer,
    )
    if problems := without_records(report):
        raise ValueError("\n".join(problems))
    return staged.described(counts=report["totals"]), report
