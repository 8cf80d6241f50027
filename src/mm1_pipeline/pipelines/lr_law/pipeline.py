"""Pipeline `lr_law`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.lab_inputs import INPUTS
from mm1_pipeline.pipelines.lr_law.nodes import fit_rates, report_law, run_rates


def create_pipeline() -> Pipeline:
    """Parameters of every stage -> rates -> lr_law and its report."""
    return Pipeline(
        [
            node(
                run_rates,
                inputs=["params:lr_law", *INPUTS],
                outputs=["rates", "rates_cost"],
                name="run_rates",
            ),
            node(fit_rates, inputs=["params:lr_law", "rates"], outputs="lr_law", name="fit_rates"),
            node(report_law, inputs="lr_law", outputs="lr_law_report", name="report_law"),
        ],
        tags="lr_law",
    )
