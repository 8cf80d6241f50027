"""Pipeline `evaluate_sft`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.evaluate_sft.nodes import evaluate_fine_tuned


def create_pipeline() -> Pipeline:
    """The fine-tuned model -> sft_evaluation, its held-out losses and predictions."""
    return Pipeline(
        [
            node(
                evaluate_fine_tuned,
                inputs=[
                    "params:evaluate",
                    "sft_model",
                    "tokenizer",
                    "shards",
                    "sft_shards",
                    "records",
                ],
                outputs=["sft_evaluation", "sft_held_out_loss", "sft_predictions"],
                name="evaluate_fine_tuned",
            )
        ],
        tags="evaluate_sft",
    )
