"""Pipeline `ingest`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.ingest.nodes import ingest_sources


def create_pipeline() -> Pipeline:
    """Raw sources -> records and ingest_report."""
    return Pipeline(
        [
            node(
                ingest_sources,
                inputs="params:ingest",
                outputs=["records", "ingest_report"],
                name="ingest_sources",
            )
        ],
        tags="ingest",
    )
