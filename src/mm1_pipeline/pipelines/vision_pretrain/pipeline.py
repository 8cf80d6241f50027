"""Pipeline `vision_pretrain`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.vision_pretrain.nodes import pretrain_vision


def create_pipeline() -> Pipeline:
    """Shards -> vision_encoder and training_vision_pretrain."""
    return Pipeline(
        [
            node(
                pretrain_vision,
                # The encoder's part of the model alone: another decoder leaves it fresh.
                inputs=["params:vision_pretrain", "params:model.vision", "shards"],
                outputs=["vision_encoder", "training_vision_pretrain"],
                name="pretrain_vision",
                tags="expensive",
            )
        ],
        tags="vision_pretrain",
    )
