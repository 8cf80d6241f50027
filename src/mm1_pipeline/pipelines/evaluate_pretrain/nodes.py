"""Nodes of `evaluate_pretrain`: scores of the pre-trained model alone."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.staleness.artifacts import Artifact


def evaluate_pretrained(
    config: EvaluateConfig,
    pretrained_model: Artifact,
    tokenizer: Artifact,
    shards: Artifact,
    records: Artifact,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores the pre-trained model, its blind twin and the most frequent answer."""
    from mm1_pipeline.evaluation.evaluate import evaluate

    staged = stage("pretrain_predictions")
    evaluation, held_out = evaluate(
        config.asked_of("pretrain"),
        {"pretrain": pretrained_model.path},
        tokenizer_dir=tokenizer.path,
        shards_dir=shards.path,
        records_dir=records.path,
        output_dir=staged.directory,
        work_dir=staged.work_directory,
    )
    return evaluation, held_out, staged.described(counts={"models": len(evaluation["models"])})
