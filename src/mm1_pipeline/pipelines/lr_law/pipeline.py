"""Pipeline `lr_law`."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from mm1_pipeline.pipelines.lab_inputs import grid_pipeline
from mm1_pipeline.pipelines.lr_law.nodes import fit_rates, report_law, run_rates


def create_pipeline() -> Pipeline:
    """Parameters of every stage -> rates -> lr_law and its report."""
    return grid_pipeline("lr_law", "rates", run_rates, fit_rates, "lr_law", report_law, ["lr_law"])
