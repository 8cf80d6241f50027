"""Nodes of `evaluate_sft`: scores of the fine-tuned model alone."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.staleness.artifacts import Artifact


def evaluate_fine_tuned(
    config: EvaluateConfig,
    sft_model: Artifact,
    tokenizer: Artifact,
    shards: Artifact,
    sft_shards: Artifact,
    records: Artifact,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores the fine-tuned model in conversations, its blind twin and the most frequent answer."""
    from mm1_pipeline.evaluation.evaluate import ChatModels, evaluate

    staged = stage("sft_predictions")
    evaluation, held_out = evaluate(
        config.asked_of("sft"),
        {},
        tokenizer_dir=tokenizer.path,
        shards_dir=shards.path,
        records_dir=records.path,
        output_dir=staged.directory,
        work_dir=staged.work_directory,
        chat=ChatModels({"sft": sft_model.path}, sft_shards.path),
    )
    return evaluation, held_out, staged.described(counts={"models": len(evaluation["models"])})
