"""Pipeline `upcycle`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.upcycle.nodes import train_dense_control, train_experts


def create_pipeline() -> Pipeline:
    """The dense model -> upcycled_model, dense_control_model and their metrics."""
    inputs = ["params:upcycle", "params:pretrain", "pretrained_model", "shards"]
    return Pipeline(
        [
            node(
                train_experts,
                inputs=inputs,
                outputs=["upcycled_model", "training_upcycle"],
                name="train_experts",
                tags="expensive",
            ),
            node(
                train_dense_control,
                inputs=inputs,
                outputs=["dense_control_model", "training_dense_control"],
                name="train_dense_control",
                tags="expensive",
            ),
        ],
        tags="upcycle",
    )
