"""Pipeline `evaluate_pretrain`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.evaluate_pretrain.nodes import evaluate_pretrained


def create_pipeline() -> Pipeline:
    """The pre-trained model -> pretrain_evaluation, its held-out losses and predictions."""
    return Pipeline(
        [
            node(
                evaluate_pretrained,
                inputs=["params:evaluate", "pretrained_model", "tokenizer", "shards", "records"],
                outputs=[
                    "pretrain_evaluation",
                    "pretrain_held_out_loss",
                    "pretrain_predictions",
                ],
                name="evaluate_pretrained",
            )
        ],
        tags="evaluate_pretrain",
    )
