"""What the nodes that score models have in common; they differ by the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.evaluate import ChatModels


def score_models(
    output: str,
    config: EvaluateConfig,
    models: dict[str, Path],
    tokenizer: Artifact,
    shards: Artifact,
    records: Artifact,
    *,
    chat: ChatModels | None = None,
    loss_only: Mapping[str, Path] | None = None,
) -> tuple[dict[str, Any], dict[str, Any], StagedArtifact]:
    """Scores models; all of a node but which they are.

    Args:
        output: Name of the artifact that gets the predictions.
        config: Tasks.
        models: Folders of those that continue documents, by name.
        tokenizer: Of all models.
        shards: What they were trained on.
        records: What tasks read.
        chat: Those that are asked in conversations.
        loss_only: Those of which only held-out losses are wanted, by name.

    Returns:
        The scores, the held-out losses and the staged predictions.
    """
    from mm1_pipeline.evaluation.evaluate import evaluate

    staged = stage(output)
    evaluation, held_out = evaluate(
        config,
        models,
        tokenizer_dir=tokenizer.path,
        shards_dir=shards.path,
        records_dir=records.path,
        output_dir=staged.directory,
        work_dir=staged.work_directory,
        chat=chat,
        loss_only=loss_only,
    )
    return evaluation, held_out, staged.described(counts={"models": len(evaluation["models"])})


def fine_tuned(sft_model: Artifact, sft_shards: Artifact) -> ChatModels:
    """The model of `sft`, which is asked in conversations."""
    from mm1_pipeline.evaluation.evaluate import ChatModels

    return ChatModels({"sft": sft_model.path}, sft_shards.path)
