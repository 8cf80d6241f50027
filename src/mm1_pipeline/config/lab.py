"""Parameters of the laboratory."""

from __future__ import annotations

import math

from mm1_pipeline.config._base import parameters


@parameters
class LawFitConfig:
    """How the learning-rate law is fitted to finished runs.

    Source: MM1, Pre-training (a quadratic a size, then linear regression in log space). How wide
    the quadratic reaches and its intervals are our choice.
    """

    higher_is_better: bool = False
    """Whether runs are judged by a score, as the paper's by the 8-shot average, or by a loss."""
    max_distance: int = 2
    """Rates on either side of a size's best that its quadratic is fitted to; beyond, losses rise
    more steeply than a parabola."""
    target_sizes: tuple[int, ...] = (2_700_000_000, 6_400_000_000, 30_000_000_000)
    """Non-embedding parameters for which a rate is predicted."""
    bootstrap_samples: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_distance < 1:
            raise ValueError(f"max_distance: found {self.max_distance}, expected at least 1.")
        if self.bootstrap_samples < 100:
            raise ValueError(
                f"bootstrap_samples: found {self.bootstrap_samples}; fewer than 100 give no "
                "interval."
            )
        if any(size < 1 or not math.isfinite(size) for size in self.target_sizes):
            raise ValueError(f"target_sizes: found {self.target_sizes}, expected parameters.")
