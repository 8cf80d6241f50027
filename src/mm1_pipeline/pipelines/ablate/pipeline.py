"""Pipeline `ablate`."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from mm1_pipeline.pipelines.ablate.nodes import judge_arms, report_lessons, run_arms
from mm1_pipeline.pipelines.lab_inputs import grid_pipeline


def create_pipeline() -> Pipeline:
    """Parameters of every stage -> arms -> lessons and their report."""
    reported = ["lessons", "arms_cost"]
    return grid_pipeline(
        "ablate", "arms", run_arms, judge_arms, "lessons", report_lessons, reported
    )
