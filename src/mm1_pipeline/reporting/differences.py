"""Differences between two measurements, and what may be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mm1_pipeline.reporting.page import Tone


@dataclass(frozen=True)
class Difference:
    """How much better one of two measurements is; above 0 the first one is.

    Attributes:
        mean: mean difference.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def read(cls, value: Mapping[str, float] | None) -> Difference | None:
        """The difference that a report states as {"mean", "low", "high"}, if it does."""
        return cls(value["mean"], value["low"], value["high"]) if value else None

    @property
    def verdict(self) -> Tone:
        """Good or bad only where the whole interval is on one side of zero."""
        if self.low > 0:
            return "good"
        return "bad" if self.high < 0 else "neutral"

    @property
    def answer(self) -> str:
        """The verdict as an answer to the question whether it helps."""
        return {"good": "yes", "bad": "worse", "neutral": "not shown"}[self.verdict]
