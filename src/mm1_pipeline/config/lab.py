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


@parameters
class WorldConfig:
    """The synthetic world of the lab: how many scenes, and how badly alt texts describe them.

    All of it is our choice: the paper trains on the web.
    """

    canvas: int = 96
    """Pixels of a side. A shape is about a quarter as wide and letters a ninth as high: at 96,
    a 64-px encoder still gets shapes of 16 px, and one of 32 px can read no word."""
    num_captions: int = 4_000
    """Images with an alt text, and as many with a dense caption."""
    num_documents: int = 3_000
    num_texts: int = 4_000
    num_items: int = 200
    """Items of each evaluation set."""
    max_examples: int = 9
    """Images of the longest document: eight shots and a query."""
    caption_documents: float = 0.2
    """Share of documents whose images have captions instead of a hidden task."""
    drop: float = 0.3
    """How often an alt text leaves an attribute out."""
    wrong: float = 0.15
    """How often it names another value than the scene's."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("num_captions", "num_documents", "num_texts", "num_items")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1.")
        for name in ("caption_documents", "drop", "wrong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 to 1.")
        if self.drop + self.wrong > 1:
            raise ValueError(
                f"wrong: found {self.wrong} beside drop {self.drop}; together they exceed 1."
            )
        if self.canvas < 48:
            raise ValueError(
                f"canvas: found {self.canvas}, expected at least 48 pixels: letters would be "
                "smaller than 5 and nobody could read them."
            )
        if self.max_examples < 2:
            raise ValueError(f"max_examples: found {self.max_examples}, expected at least 2.")
