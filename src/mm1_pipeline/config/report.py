"""Parameters of `report`."""

from __future__ import annotations

from typing import Annotated

from mm1_pipeline.config._base import Count, bounds, parameters


@parameters
class ReportConfig:
    """Parameters of the stage `report`."""

    title: str = "MM1 pipeline: run report"
    num_examples: Annotated[int, bounds(ge=0, le=10_000)] = 12
    """Example images with predictions shown for each task."""
    smoothing_steps: Count = 10
    """Window of the running mean in the loss curves, in steps."""
