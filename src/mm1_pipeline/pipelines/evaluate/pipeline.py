"""Pipelines `evaluate`, `evaluate_pretrain` and `evaluate_sft`: one node each, of other models."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.evaluate import nodes

_GOALS = {
    "evaluate": (
        nodes.evaluate_models,
        ["pretrained_model", "upcycled_model", "dense_control_model", "sft_model", "sft_shards"],
        "",
    ),
    "evaluate_pretrain": (nodes.evaluate_pretrained, ["pretrained_model"], "pretrain_"),
    "evaluate_sft": (nodes.evaluate_fine_tuned, ["sft_model", "sft_shards"], "sft_"),
}
"""By name: the node's function, the models that it scores, and how its outputs begin."""


def create_pipeline(goal: str = "evaluate") -> Pipeline:
    """Models -> evaluation, held_out_loss and predictions.

    Args:
        goal: Which models: `evaluate` (all), `evaluate_pretrain` or `evaluate_sft`.
    """
    function, models, beginning = _GOALS[goal]
    outputs = [f"{beginning}{name}" for name in ("evaluation", "held_out_loss", "predictions")]
    inputs = ["params:evaluate", "tokenizer", "shards", "evaluation_records", *models]
    return Pipeline([node(function, inputs, outputs, name=function.__name__)], tags=goal)
