"""Pipeline `report`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.report.nodes import write_report


def create_pipeline() -> Pipeline:
    """Every report -> report.html."""
    return Pipeline(
        [
            node(
                write_report,
                inputs=[
                    "params:report",
                    "ingest_report",
                    "shard_report",
                    "mixture",
                    "training_vision_pretrain",
                    "training_text_pretrain",
                    "training_pretrain",
                    "training_upcycle",
                    "training_dense_control",
                    "training_sft",
                    "evaluation",
                    "held_out_loss",
                    "vision_held_out",
                    "predictions",
                    "evaluation_records",
                    "shards",
                    "sft_shards",
                    "pretrained_model",
                    "upcycled_model",
                    "sft_model",
                ],
                outputs="report",
                name="write_report",
                tags="shows_lineage",
            )
        ],
        tags="report",
    )
