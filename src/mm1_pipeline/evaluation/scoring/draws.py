"""A task that is asked with several sets of shots: the mean over them, and how far they differ.

A score with one set of shots hangs on that set. With k sets, the number is the mean of k scores
of the same items, and its variance the sum of two parts: that of the items, by the bootstrap, and
s^2 / k, where s^2 is the variance of the k scores. The second part counts a little of the first
again (an item's answer varies with the shots), so intervals err on the wide side.

Worked example, scores 40, 44 and 48 of three sets: the mean is 44, s = 4, so the sets' part of the
standard error is 4 / sqrt(3) = 2.31; with items' part 3.0, it is sqrt(3.0^2 + 2.31^2) = 3.79.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm1_pipeline.evaluation.generation.answer_log import Answer
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.scoring.judge import Judge
from mm1_pipeline.evaluation.scoring.scoring import (
    DIGITS,
    TaskScores,
    percentile_interval,
    score_outputs,
    write_rows,
)
from mm1_pipeline.evaluation.tasks import Task


@dataclass(frozen=True)
class AveragedScores:
    """Scores of a task with two or more sets of shots; used as `TaskScores`.

    Attributes:
        draws: Scores with each set.
    """

    draws: tuple[TaskScores, ...]

    @property
    def values_by_draw(self) -> np.ndarray:
        """The task's number with each set of shots: float64[k]."""
        return np.array([scores.value for scores in self.draws])

    @property
    def value(self) -> float:
        """The mean of the numbers."""
        return float(self.values_by_draw.mean())

    @property
    def rows(self) -> Iterator[dict[str, Any]]:
        """What was asked, answered and scored, set after set; `draw` counts the sets."""
        for draw, scores in enumerate(self.draws):
            for row in scores.rows:
                yield {**row, "id": f"{row['id']}/draw{draw}", "draw": draw}

    def summary(self, num_samples: int, seed: int) -> dict[str, Any]:
        """As that of `TaskScores`; `draws` holds the number with each set of shots.

        Args:
            num_samples: Bootstrap resamples.
            seed: Same seed, same resamples.
        """
        values = self.values_by_draw
        drawn = self._resampled_items(num_samples, seed) + _draw_effect(values, num_samples, seed)
        whole = self.draws[0].summary(num_samples, seed)
        failed = {row["key"] for row in self.rows if row["failure"] is not None}
        details = _mean([scores.details for scores in self.draws])
        return {
            "value": round(self.value, DIGITS),
            "stderr": round(float(drawn.std(ddof=1)), DIGITS),
            "n": whole["n"],
            "failed": len(failed),
            **({"details": details} if details else {}),
            "draws": {
                "values": [round(float(value), DIGITS) for value in values],
                "stderr": round(float(values.std(ddof=1)) / math.sqrt(len(values)), DIGITS),
            },
        }

    def gain_over(self, other: AveragedScores, num_samples: int, seed: int) -> dict[str, float]:
        """The difference to another model's number over the same items and sets of shots."""
        # The same seed draws the same items for both.
        drawn = self._resampled_items(num_samples, seed)
        drawn = drawn - other._resampled_items(num_samples, seed)
        differences = self.values_by_draw - other.values_by_draw
        drawn += _draw_effect(differences, num_samples, seed)
        return percentile_interval(float(differences.mean()), drawn)

    def write(self, path: Path) -> None:
        """Writes the rows of all sets of shots, one JSON object a line."""
        write_rows(path, self.rows)

    def _resampled_items(self, num_samples: int, seed: int) -> np.ndarray:
        """Means over the sets, of resamples of the items alone: float64[num_samples]."""
        return np.mean([scores.resampled(num_samples, seed) for scores in self.draws], axis=0)


def score_draws(
    task: Task,
    num_shots: int,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    judge: Judge | None = None,
) -> TaskScores | AveragedScores:
    """Scores answers to prompts of one or more sets of shots; see `score_outputs`."""
    asked: dict[int, list[Prompt]] = defaultdict(list)
    answered: dict[int, list[Answer]] = defaultdict(list)
    for prompt, answer in zip(prompts, answers, strict=True):
        asked[prompt.draw].append(prompt)
        answered[prompt.draw].append(answer)
    scored = tuple(
        score_outputs(task, num_shots, asked[draw], answered[draw], judge) for draw in sorted(asked)
    )
    return scored[0] if len(scored) == 1 else AveragedScores(scored)


def gain_over(
    scores: TaskScores | AveragedScores,
    other: TaskScores | AveragedScores,
    num_samples: int,
    seed: int,
) -> dict[str, float]:
    """The difference of two models' numbers, asked alike, with its paired 95 % interval."""
    match scores, other:
        case TaskScores(), TaskScores():
            return scores.gain_over(other, num_samples, seed)
        case AveragedScores(), AveragedScores():
            return scores.gain_over(other, num_samples, seed)
    raise AssertionError("one was asked with several sets of shots, the other with one")


def _draw_effect(values: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """How far the mean over k sets would lie elsewhere with other sets: float64[num_samples].

    Sets are drawn again with replacement; the factor makes up for k of them varying less than all
    there are, so that the variance is s^2 / k.
    """
    count = len(values)
    drawn = np.random.default_rng([seed, count]).integers(0, count, (num_samples, count))
    return (values[drawn].mean(axis=1) - values.mean()) * math.sqrt(count / (count - 1))


def _mean(parts: Sequence[Any]) -> Any:
    """Mean of numbers at the same places of nested mappings; what is equal stays as it is."""
    if all(isinstance(part, Mapping) for part in parts):
        return {name: _mean([part[name] for part in parts]) for name in parts[0]}
    if all(part == parts[0] for part in parts):
        return parts[0]
    return round(float(np.mean(parts)), DIGITS)
