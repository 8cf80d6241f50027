"""Pipeline `text_pretrain`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.text_pretrain.nodes import plan_text_mixture, pretrain_text


def create_pipeline() -> Pipeline:
    """Shards -> text_mixture, text_decoder and training_text_pretrain."""
    return Pipeline(
        [
            node(
                plan_text_mixture,
                inputs=["params:text_pretrain", "shards"],
                outputs=["text_mixture", "text_shards"],
                name="plan_text_mixture",
            ),
            node(
                pretrain_text,
                # The decoder's part of the model alone: another encoder leaves it fresh.
                inputs=[
                    "params:text_pretrain",
                    "params:model.decoder",
                    "text_shards",
                    "text_mixture",
                ],
                outputs=["text_decoder", "training_text_pretrain"],
                name="pretrain_text",
                tags="expensive",
            ),
        ],
        tags="text_pretrain",
    )
