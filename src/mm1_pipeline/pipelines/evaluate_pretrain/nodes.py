"""Nodes of `evaluate_pretrain`: scores of the pre-trained model alone."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.scoring import score_models


def evaluate_pretrained(
    config: EvaluateConfig,
    pretrained_model: Artifact,
    tokenizer: Artifact,
    shards: Artifact,
    records: Artifact,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores the pre-trained model, its blind twin and the most frequent answer."""
    return score_models(
        "pretrain_predictions",
        config.asked_of("pretrain"),
        {"pretrain": pretrained_model.path},
        tokenizer,
        shards,
        records,
    )
