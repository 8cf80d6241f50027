"""Pipeline `export`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.export.nodes import export_pretrained


def create_pipeline() -> Pipeline:
    """Models -> directories of Hugging Face's layout."""
    return Pipeline(
        [
            node(
                export_pretrained,
                inputs=["params:export", "pretrained_model", "tokenizer", "shards"],
                outputs="exported_pretrain",
                name="export_pretrained",
            )
        ],
        tags="export",
    )
