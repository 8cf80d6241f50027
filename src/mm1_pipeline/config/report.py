"""Parameters of `report`."""

from __future__ import annotations

from mm1_pipeline.config._base import parameters


@parameters
class ReportConfig:
    """Parameters of the stage `report`."""

    title: str = "MM1 pipeline: run report"
    num_examples: int = 12
    """Example images with predictions shown for each task."""
    smoothing_steps: int = 10
    """Window of the running mean in the loss curves, in steps."""
