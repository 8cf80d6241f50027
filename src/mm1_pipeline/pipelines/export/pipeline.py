"""Pipeline `export`: one node for each model."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.export.nodes import exporter

_MODELS = {
    "export_pretrained": ("pretrained_model", "shards", "exported_pretrain"),
    "export_upcycled": ("upcycled_model", "shards", "exported_upcycle"),
    "export_fine_tuned": ("sft_model", "sft_shards", "exported_sft"),
}
"""By node: model, what it was trained on, and the directory that it becomes."""


def create_pipeline() -> Pipeline:
    """Models -> directories of Hugging Face's layout."""
    return Pipeline(
        [
            node(
                exporter(output),
                inputs=["params:export", model, "tokenizer", shards, "params:ingest"],
                outputs=output,
                name=name,
            )
            for name, (model, shards, output) in _MODELS.items()
        ],
        tags="export",
    )
