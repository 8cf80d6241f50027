"""The pipelines by name. Each is a goal: a stage with everything it needs before it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from kedro.pipeline import Pipeline

from mm1_pipeline.config.wiring import sft_start
from mm1_pipeline.pipelines.ablate.pipeline import create_pipeline as ablate
from mm1_pipeline.pipelines.boxes import in_boxes
from mm1_pipeline.pipelines.download.pipeline import create_pipeline as download
from mm1_pipeline.pipelines.evaluate.pipeline import create_pipeline as evaluate
from mm1_pipeline.pipelines.export.pipeline import create_pipeline as export
from mm1_pipeline.pipelines.ingest.pipeline import create_pipeline as ingest
from mm1_pipeline.pipelines.lr_law.pipeline import create_pipeline as lr_law
from mm1_pipeline.pipelines.pretrain.pipeline import create_pipeline as pretrain
from mm1_pipeline.pipelines.report.pipeline import create_pipeline as report
from mm1_pipeline.pipelines.sft.pipeline import create_pipeline as sft
from mm1_pipeline.pipelines.shard.pipeline import create_pipeline as shard
from mm1_pipeline.pipelines.synthesize.pipeline import create_pipeline as synthesize
from mm1_pipeline.pipelines.text_pretrain.pipeline import create_pipeline as text_pretrain
from mm1_pipeline.pipelines.upcycle.pipeline import create_pipeline as upcycle
from mm1_pipeline.pipelines.vision_pretrain.pipeline import create_pipeline as vision_pretrain

_KEDRO_VIZ = "kedro_viz.integrations.kedro.data_loader"
"""The module with which Kedro-Viz asks for pipelines, with hooks or without; no run imports it."""

STAGES: dict[str, Callable[[], Pipeline]] = {
    "ingest": ingest,
    "synthesize": synthesize,
    "shard": shard,
    "vision_pretrain": vision_pretrain,
    "text_pretrain": text_pretrain,
    "pretrain": pretrain,
    "upcycle": upcycle,
    "sft": lambda: sft(sft_start()),
    "evaluate": evaluate,
    "report": report,
}
"""Stages in the order of the default run."""

OUTSIDE: dict[str, Callable[[], Pipeline]] = {
    "download": download,
    "export": export,
    "evaluate_pretrain": lambda: evaluate("evaluate_pretrain"),
    "evaluate_sft": lambda: evaluate("evaluate_sft"),
    "ablate": ablate,
    "lr_law": lr_law,
}
"""Goals that the default run does not build."""


def register_pipelines() -> dict[str, Pipeline]:
    """Names every goal, as targets in make; `--tags=<stage>` runs one stage alone.

    Imports neither torch nor Composer: nodes import what they call.
    """
    default = sum((create() for create in STAGES.values()), Pipeline([]))
    every_node = sum((create() for create in OUTSIDE.values()), default)
    goals = {
        stage: every_node.to_nodes(*(node.name for node in create().nodes))
        for stage, create in {**STAGES, **OUTSIDE}.items()
    }
    found = {**goals, "__default__": default}
    if _KEDRO_VIZ in sys.modules:
        return {name: in_boxes(pipeline) for name, pipeline in found.items()}
    return found
