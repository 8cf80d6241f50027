"""Pipeline `ingest`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.ingest import nodes


def create_pipeline() -> Pipeline:
    """Raw sources -> records for evaluation, pre-training and SFT, and ingest_report.

    The files of benchmarks are no sources; they are read for what the records must not hold.
    """
    reports = ["evaluation_sources", "pretraining_sources", "conversation_sources"]
    return Pipeline(
        [
            node(
                nodes.ingest_evaluation,
                inputs="params:ingest",
                outputs=["evaluation_records", reports[0]],
                name="ingest_evaluation",
            ),
            node(
                nodes.index_evaluation,
                inputs=["params:ingest", "params:evaluate", "evaluation_records"],
                outputs="evaluation_index",
                name="index_evaluation",
            ),
            node(
                nodes.ingest_pretraining,
                inputs=["params:ingest", "evaluation_index"],
                outputs=["records", reports[1]],
                name="ingest_pretraining",
            ),
            node(
                nodes.ingest_conversations,
                inputs=["params:ingest", "evaluation_index"],
                outputs=["sft_records", reports[2]],
                name="ingest_conversations",
            ),
            node(
                nodes.report_sources,
                inputs=["params:ingest", *reports],
                outputs="ingest_report",
                name="report_sources",
            ),
        ],
        tags="ingest",
    )
