"""Pipeline `lr_law`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.lab_inputs import INPUTS
from mm1_pipeline.pipelines.lr_law.nodes import fit_rates, run_rates


def create_pipeline() -> Pipeline:
    """Parameters of every stage -> rates -> lr_law."""
    return Pipeline(
        [
            node(
                run_rates,
                inputs=["params:lr_law", *INPUTS],
                outputs=["rates", "rates_cost"],
                name="run_rates",
            ),
            node(fit_rates, inputs=["params:lr_law", "rates"], outputs="lr_law", name="fit_rates"),
        ],
        tags="lr_law",
    )
