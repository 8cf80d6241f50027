"""Nodes of `report`: one page that shows the run."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact
from kedro_rerun.context import current_context
from kedro_rerun.environment import version_of

from mm1_pipeline.config.report import ReportConfig


def write_report(
    config: ReportConfig,
    ingest_report: dict[str, Any],
    shard_report: dict[str, Any],
    mixture: dict[str, Any],
    training_vision_pretrain: list[dict[str, Any]],
    training_text_pretrain: list[dict[str, Any]],
    training_pretrain: list[dict[str, Any]],
    training_upcycle: list[dict[str, Any]],
    training_dense_control: list[dict[str, Any]],
    training_sft: list[dict[str, Any]],
    evaluation: dict[str, Any],
    held_out_loss: dict[str, Any],
    vision_held_out: dict[str, Any],
    predictions: Artifact,
    evaluation_records: Artifact,
    shards: Artifact,
    sft_shards: Artifact,
    pretrained_model: Artifact,
    upcycled_model: Artifact,
    sft_model: Artifact,
) -> str:
    """Renders every report of the run as one self-contained HTML page."""
    from mm1_pipeline.reporting.html import render_report

    models = {"pretrain": pretrained_model, "upcycle": upcycled_model, "sft": sft_model}
    made = (evaluation_records, shards, sft_shards, predictions, *models.values())
    libraries = {name for each in made for name in each.manifest["provenance"].get("libraries", {})}
    return render_report(
        config,
        ingest_report=ingest_report,
        shard_report=shard_report,
        mixture=mixture,
        training={
            "vision_pretrain": training_vision_pretrain,
            "text_pretrain": training_text_pretrain,
            "pretrain": training_pretrain,
            "upcycle": training_upcycle,
            "dense_control": training_dense_control,
            "sft": training_sft,
        },
        evaluation=evaluation,
        held_out_loss=held_out_loss,
        vision_held_out=vision_held_out,
        predictions_dir=predictions.path,
        records_dir=evaluation_records.path,
        shards={"shards": shards.path, "shards for sft": sft_shards.path},
        models={stage: model.path for stage, model in models.items()},
        versions={name: version_of(name) for name in sorted(libraries)},
        mixed=context.mixed if (context := current_context()) is not None else (),
    )
