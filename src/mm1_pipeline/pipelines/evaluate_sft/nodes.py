"""Nodes of `evaluate_sft`: scores of the fine-tuned model alone."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.scoring import fine_tuned, score_models


def evaluate_fine_tuned(
    config: EvaluateConfig,
    sft_model: Artifact,
    tokenizer: Artifact,
    shards: Artifact,
    sft_shards: Artifact,
    records: Artifact,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores the fine-tuned model in conversations, its blind twin and the most frequent answer."""
    return score_models(
        "sft_predictions",
        config.asked_of("sft"),
        {},
        tokenizer,
        shards,
        records,
        chat=fine_tuned(sft_model, sft_shards),
    )
