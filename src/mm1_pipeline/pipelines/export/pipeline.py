"""Pipeline `export`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.export.nodes import (
    export_fine_tuned,
    export_pretrained,
    export_upcycled,
)


def create_pipeline() -> Pipeline:
    """Models -> directories of Hugging Face's layout."""
    return Pipeline(
        [
            node(
                export_pretrained,
                inputs=["params:export", "pretrained_model", "tokenizer", "shards"],
                outputs="exported_pretrain",
                name="export_pretrained",
            ),
            node(
                export_upcycled,
                inputs=["params:export", "upcycled_model", "tokenizer", "shards"],
                outputs="exported_upcycle",
                name="export_upcycled",
            ),
            node(
                export_fine_tuned,
                inputs=["params:export", "sft_model", "tokenizer", "sft_shards"],
                outputs="exported_sft",
                name="export_fine_tuned",
            ),
        ],
        tags="export",
    )
