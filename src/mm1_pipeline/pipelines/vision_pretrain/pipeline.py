"""Pipeline `vision_pretrain`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.vision_pretrain.nodes import (
    evaluate_vision,
    plan_vision_mixture,
    pretrain_vision,
)


def create_pipeline() -> Pipeline:
    """Shards -> vision_mixture, vision_encoder, training_vision_pretrain and vision_held_out."""
    return Pipeline(
        [
            node(
                plan_vision_mixture,
                inputs=["params:vision_pretrain", "shards"],
                outputs=["vision_mixture", "vision_shards"],
                name="plan_vision_mixture",
            ),
            node(
                pretrain_vision,
                # The encoder's part of the model alone: another decoder leaves it fresh.
                inputs=[
                    "params:vision_pretrain",
                    "params:model.vision",
                    "vision_shards",
                    "vision_mixture",
                ],
                outputs=["vision_encoder", "training_vision_pretrain"],
                name="pretrain_vision",
                tags="expensive",
            ),
            node(
                evaluate_vision,
                inputs=[
                    "params:evaluate",
                    "params:vision_pretrain",
                    "vision_encoder",
                    "vision_shards",
                ],
                outputs="vision_held_out",
                name="evaluate_vision",
            ),
        ],
        tags="vision_pretrain",
    )
