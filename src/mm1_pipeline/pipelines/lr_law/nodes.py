"""Nodes of `lr_law`: runs of several sizes and rates, and the line through their best."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.lab import LrLawConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.lab_inputs import reads_stages, run_stages


@reads_stages
def run_rates(config: LrLawConfig, *groups: Any) -> tuple[StagedArtifact, dict[str, Any]]:
    """Trains every size at every rate, each as an ordinary run."""
    from mm1_pipeline.lab.grid import learning_rate_grid

    return run_stages("rates", learning_rate_grid(config), groups)


def fit_rates(config: LrLawConfig, rates: Artifact) -> dict[str, Any]:
    """Fits the law."""
    from mm1_pipeline.lab.grid import learning_rate_grid
    from mm1_pipeline.lab.lessons import read_runs
    from mm1_pipeline.lab.lr_law import fit_law

    runs = read_runs(config, learning_rate_grid(config), rates.path)
    return fit_law(config.fit, runs).as_json()


def report_law(lr_law: dict[str, Any]) -> str:
    """Shows the law beside the paper's."""
    from mm1_pipeline.reporting.lessons import render_law

    return render_law(lr_law)
