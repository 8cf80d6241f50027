"""Pipeline `pretrain`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.pretrain.nodes import plan_mixture, pretrain_model


def create_pipeline() -> Pipeline:
    """Shards, encoder and decoder -> mixture, pretrained_model and training_pretrain."""
    return Pipeline(
        [
            node(
                plan_mixture,
                inputs=["params:pretrain", "shards"],
                outputs="mixture",
                name="plan_mixture",
            ),
            node(
                pretrain_model,
                inputs=[
                    "params:pretrain",
                    "params:model",
                    "shards",
                    "mixture",
                    "vision_encoder",
                    "text_decoder",
                ],
                outputs=["pretrained_model", "training_pretrain"],
                name="pretrain_model",
                tags="expensive",
            ),
        ],
        tags="pretrain",
    )
