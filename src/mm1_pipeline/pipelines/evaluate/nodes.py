"""Nodes of `evaluate` and its parts: few-shot scores beside honest baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.evaluate import ChatModels

Evaluated = tuple[dict[str, Any], dict[str, Any], StagedArtifact]
"""The scores, the held-out losses and the staged predictions."""


def evaluate_models(
    config: EvaluateConfig,
    tokenizer: Artifact,
    shards: Artifact,
    evaluation_records: Artifact,
    pretrained_model: Artifact,
    upcycled_model: Artifact,
    dense_control_model: Artifact,
    sft_model: Artifact,
    sft_shards: Artifact,
) -> Evaluated:
    """Scores every stage's model, its blind twin and the most frequent answer on every task."""
    return _score(
        "predictions",
        config,
        {"pretrain": pretrained_model.path, "upcycle": upcycled_model.path},
        (tokenizer, shards, evaluation_records),
        chat=_fine_tuned(sft_model, sft_shards),
        loss_only={"dense_control": dense_control_model.path},
    )


@narrowed(config=lambda config: config.asked_of("pretrain"))
def evaluate_pretrained(
    config: EvaluateConfig,
    tokenizer: Artifact,
    shards: Artifact,
    evaluation_records: Artifact,
    pretrained_model: Artifact,
) -> Evaluated:
    """Scores the pre-trained model alone, its blind twin and the most frequent answer."""
    models = {"pretrain": pretrained_model.path}
    return _score("pretrain_predictions", config, models, (tokenizer, shards, evaluation_records))


@narrowed(config=lambda config: config.asked_of("sft"))
def evaluate_fine_tuned(
    config: EvaluateConfig,
    tokenizer: Artifact,
    shards: Artifact,
    evaluation_records: Artifact,
    sft_model: Artifact,
    sft_shards: Artifact,
) -> Evaluated:
    """Scores the fine-tuned model alone, in conversations, and the same beside it."""
    chat = _fine_tuned(sft_model, sft_shards)
    return _score("sft_predictions", config, {}, (tokenizer, shards, evaluation_records), chat=chat)


def _score(
    output: str,
    config: EvaluateConfig,
    models: dict[str, Path],
    shared: tuple[Artifact, Artifact, Artifact],
    *,
    chat: ChatModels | None = None,
    loss_only: Mapping[str, Path] | None = None,
) -> Evaluated:
    """Scores models; all of a node but which they are.

    Args:
        output: Name of the artifact that gets the predictions.
        config: Tasks.
        models: Folders of those that continue documents, by name.
        shared: The tokenizer of all, the shards that they were trained on, the tasks' records.
        chat: Those that are asked in conversations.
        loss_only: Those of which only held-out losses are wanted, by name.
    """
    from mm1_pipeline.evaluation.evaluate import evaluate

    tokenizer, shards, records = shared
    staged = stage(output)
    evaluation, held_out = evaluate(
        config,
        models,
        tokenizer_dir=tokenizer.path,
        shards_dir=shards.path,
        records_dir=records.path,
        output_dir=staged.directory,
        part=staged.workspace.part,
        chat=chat,
        loss_only=loss_only,
    )
    return evaluation, held_out, staged.described(counts={"models": len(evaluation["models"])})


def _fine_tuned(sft_model: Artifact, sft_shards: Artifact) -> ChatModels:
    """The model of `sft`, which is asked in conversations."""
    from mm1_pipeline.evaluation.evaluate import ChatModels

    return ChatModels({"sft": sft_model.path}, sft_shards.path)
