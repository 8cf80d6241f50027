"""Losses that leap, found by a robust score and counted, and losses that stay high."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any, NamedTuple

from mm1_pipeline.config.training import DivergenceConfig, LossSpikeConfig

_NORMAL = 1.4826
"""Standard deviations in a median distance from the median, for a normal distribution."""

_SMALLEST_SPREAD = 1e-3
"""Share of the median below which the spread is not taken: equal losses are no reason to call
the next one a leap. Our choice."""


class Judgement(NamedTuple):
    """What a step's loss is, next to those before it."""

    score: float | None
    """Robust standard deviations above the median; None while too few losses are known."""
    is_spike: bool


class SpikeDetector:
    """Compares each loss with a window of those before it.

    Args:
        config: threshold and window.
    """

    def __init__(self, config: LossSpikeConfig) -> None:
        self.config = config
        self.num_found = 0
        self.num_skipped = 0
        self.last = Judgement(None, False)
        self._losses: deque[float] = deque(maxlen=config.window_steps)

    def judge(self, loss: float) -> Judgement:
        """Scores a loss and remembers it.

        The loss of a step that is left out is not remembered: the weights that gave it stay,
        but a run of broken batches must not become what is normal. With `warn` a loss is
        remembered whatever it is, so a new level is accepted once it fills half a window.

        Args:
            loss: of one step, the mean over its targets; finite.
        """
        score = self._score(loss) if len(self._losses) == self.config.window_steps else None
        is_spike = score is not None and score > self.config.threshold
        self.num_found += is_spike
        if is_spike and self.config.action == "skip":
            self.num_skipped += 1
        else:
            self._losses.append(loss)
        self.last = Judgement(score, is_spike)
        return self.last

    def row(self) -> dict[str, Any]:
        """The last step's score and the counts so far, for the log."""
        return {
            "score": self.last.score,
            "found": self.num_found,
            "skipped": self.num_skipped,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know."""
        counts = {"found": self.num_found, "skipped": self.num_skipped}
        return {"losses": list(self._losses), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._losses.extend(state["losses"])
        self.num_found, self.num_skipped = state["found"], state["skipped"]

    def _score(self, loss: float) -> float:
        median = statistics.median(self._losses)
        distance = statistics.median(abs(known - median) for known in self._losses)
        spread = max(_NORMAL * distance, _SMALLEST_SPREAD * abs(median), 1e-12)
        return (loss - median) / spread


class DivergenceDetector:
    """Counts the steps in a row whose loss is far above the lowest one so far.

    Args:
        config: how far, and how many.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self.lowest = math.inf
        self.lowest_step = 0
        self.num_above = 0
        """Steps in a row, the last one included, whose loss is above the limit."""

    @property
    def limit(self) -> float:
        """The loss above which a step counts."""
        return self.config.factor * max(self.lowest, self.config.floor)

    def has_diverged(self, step: int, loss: float) -> bool:
        """Judges a step's loss and remembers it.

        Args:
            step: counted from 1.
            loss: finite.
        """
        if loss < self.lowest:
            self.lowest, self.lowest_step = loss, step
        self.num_above = self.num_above + 1 if loss > self.limit else 0
        return self.num_above >= self.config.patience_steps

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know."""
        is_known = self.lowest_step > 0
        lowest = {"lowest": self.lowest, "lowest_step": self.lowest_step} if is_known else {}
        return {**lowest, "num_above": self.num_above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave; of a checkpoint without it, from nothing known."""
        self.lowest = state.get("lowest", math.inf)
        self.lowest_step = state.get("lowest_step", 0)
        self.num_above = state.get("num_above", 0)
