"""Nodes of `ablate`: arms, and what they say about the paper's lessons."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.lab import AblateConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.lab_inputs import reads_stages, run_stages


@reads_stages
def run_arms(config: AblateConfig, *groups: Any) -> tuple[StagedArtifact, dict[str, Any]]:
    """Trains and evaluates every arm from every seed, each as an ordinary run."""
    return run_stages("arms", config.grid, groups)


def judge_arms(config: AblateConfig, arms: Artifact) -> dict[str, Any]:
    """Gives the verdict on each lesson."""
    from mm1_pipeline.lab.lessons import judge_lessons

    return judge_lessons(config, arms.path)


def report_lessons(lessons: dict[str, Any], arms_cost: dict[str, Any]) -> str:
    """Shows every lesson with its verdict, differences, cost and the paper's figure."""
    from mm1_pipeline.reporting.lessons import render_lessons

    return render_lessons(lessons, arms_cost)
