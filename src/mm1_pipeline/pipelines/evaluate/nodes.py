"""Nodes of `evaluate`: few-shot scores beside honest baselines."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.staleness.artifacts import Artifact


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
    from mm1_pipeline.evaluation.evaluate import ChatModels, evaluate

    staged = stage("predictions")
    evaluation, held_out = evaluate(
        config,
        {"pretrain": pretrained_model.path, "upcycle": upcycled_model.path},
        tokenizer_dir=tokenizer.path,
        shards_dir=shards.path,
        records_dir=records.path,
        output_dir=staged.directory,
        work_dir=staged.work_directory,
        chat=ChatModels({"sft": sft_model.path}, sft_shards.path),
        loss_only={"dense_control": dense_control_model.path},
    )
    return evaluation, held_out, staged.described(counts={"models": len(evaluation["models"])})
