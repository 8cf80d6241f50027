"""Pipeline `download`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.download.nodes import download_images


def create_pipeline() -> Pipeline:
    """Lists of addresses -> raw shards and download_report."""
    return Pipeline(
        [
            node(
                download_images,
                inputs="params:download",
                outputs="download_report",
                name="download_images",
            )
        ],
        tags="download",
    )
