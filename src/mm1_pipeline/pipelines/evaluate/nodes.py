"""Nodes of `evaluate`: few-shot scores beside honest baselines."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.scoring import fine_tuned, score_models


def evaluate_models(
    config: EvaluateConfig,
    pretrained_model: Artifact,
    upcycled_model: Artifact,
    dense_control_model: Artifact,
    sft_model: Artifact,
    tokenizer: Artifact,
    shards: Artifact,
    sft_shards: Artifact,
    records: Artifact,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores every stage's model, its blind twin and the most frequent answer on every task."""
    return score_models(
        "predictions",
        config,
        {"pretrain": pretrained_model.path, "upcycle": upcycled_model.path},
        tokenizer,
        shards,
        records,
        chat=fine_tuned(sft_model, sft_shards),
        loss_only={"dense_control": dense_control_model.path},
    )
