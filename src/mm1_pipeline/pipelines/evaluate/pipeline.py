"""Pipeline `evaluate`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.evaluate.nodes import evaluate_models


def create_pipeline() -> Pipeline:
    """Models -> evaluation, held_out_loss and predictions."""
    return Pipeline(
        [
            node(
                evaluate_models,
                inputs=[
                    "params:evaluate",
                    "pretrained_model",
                    "upcycled_model",
                    "dense_control_model",
                    "sft_model",
                    "tokenizer",
                    "shards",
                    "sft_shards",
                    "records",
                ],
                outputs=["evaluation", "held_out_loss", "predictions"],
                name="evaluate_models",
            )
        ],
        tags="evaluate",
    )
