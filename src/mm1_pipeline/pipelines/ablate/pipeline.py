"""Pipeline `ablate`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.ablate.nodes import judge_arms, report_lessons, run_arms
from mm1_pipeline.pipelines.lab_inputs import INPUTS


def create_pipeline() -> Pipeline:
    """Parameters of every stage -> arms -> lessons and their report."""
    return Pipeline(
        [
            node(
                run_arms,
                inputs=["params:ablate", *INPUTS],
                outputs=["arms", "arms_cost"],
                name="run_arms",
            ),
            node(
                judge_arms, inputs=["params:ablate", "arms"], outputs="lessons", name="judge_arms"
            ),
            node(
                report_lessons,
                inputs=["lessons", "arms_cost"],
                outputs="lessons_report",
                name="report_lessons",
            ),
        ],
        tags="ablate",
    )
