"""From raw outputs to scored rows, and from rows to a number with its uncertainty."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.evaluation.answers import Answer
from mm1_pipeline.evaluation.metrics import cider_scores, vqa_accuracy
from mm1_pipeline.evaluation.postprocess import process_output
from mm1_pipeline.evaluation.prompts import Prompt
from mm1_pipeline.evaluation.statistics import paired_interval, standard_error
from mm1_pipeline.evaluation.tasks import Task, TaskItem

logger = logging.getLogger(__name__)

_PERCENT = 100
_DIGITS = 6


@dataclass(frozen=True)
class TaskScores:
    """Scores of all items of a task, times 100.

    Attributes:
        values: float64[n]; an item that could not be asked has 0.
        images: The image of each item; items of one image are resampled together.
        rows: What was asked, answered and scored, an item a row.
    """

    values: np.ndarray
    images: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]

    def summary(self, num_samples: int, seed: int) -> dict[str, Any]:
        """Mean, standard error, items, and those among them that could not be asked.

        Args:
            num_samples: Bootstrap resamples.
            seed: Same seed, same resamples.
        """
        return {
            "value": round(float(self.values.mean()), _DIGITS),
            "stderr": round(standard_error(self.values, num_samples, seed, self.images), _DIGITS),
            "n": len(self.values),
            "failed": sum(row["failure"] is not None for row in self.rows),
        }

    def gain_over(self, other: TaskScores, num_samples: int, seed: int) -> dict[str, float]:
        """Mean of the differences to another model's scores with its paired 95 % interval."""
        interval = paired_interval(self.values, other.values, num_samples, seed, self.images)
        return {name: round(value, _DIGITS) for name, value in interval._asdict().items()}

    def write(self, path: Path) -> None:
        """Writes the rows, one JSON object a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        path.write_text("".join(lines), encoding="utf-8")


def score_outputs(
    task: Task, num_shots: int, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> TaskScores:
    """Scores the answers of one model on one task; what could not be answered is wrong.

    Args:
        task: Gives items, metric and stop strings.
        num_shots: Shots of the prompts.
        prompts: Prompt of every item that can be asked.
        answers: The answer to each prompt.
    """
    asked = {prompt.key: prompt for prompt in prompts}
    answered = {prompt.key: answer for prompt, answer in zip(prompts, answers, strict=True)}
    raw = {key: answer.text for key, answer in answered.items() if answer.failure is None}
    failures = task.failures | {
        key: answer.failure for key, answer in answered.items() if answer.failure is not None
    }
    for key in failures.keys() - task.failures.keys():
        logger.warning(
            "%s, %d shots: item %s counts as wrong: %s", task.name, num_shots, key, failures[key]
        )
    processed = {
        key: process_output(output, task.config.metric, task.config.stop)
        for key, output in raw.items()
    }
    values = _PERCENT * _score_items(task, processed)
    rows = (
        {
            "id": f"{task.name}/{num_shots}shot/{item.key}",
            "source": task.config.source,
            "key": item.key,
            "prompt_sha256": asked[item.key].sha256 if item.key in asked else None,
            "shots": list(asked[item.key].shots) if item.key in asked else [],
            "raw_output": raw.get(item.key, ""),
            "processed_output": processed.get(item.key, ""),
            "references": list(item.references),
            "score": round(float(value), _DIGITS),
            "failure": failures.get(item.key),
        }
        for item, value in zip(task.items, values, strict=True)
    )
    images = tuple(item.image or item.key for item in task.items)
    return TaskScores(values, images, tuple(rows))


def _score_items(task: Task, processed: Mapping[str, str]) -> np.ndarray:
    match task.config.metric:
        case Metric.VQA_ACCURACY:
            return np.array([_accuracy(item, processed.get(item.key)) for item in task.items])
        case Metric.CIDER:
            return _cider(task.items, processed)


def _accuracy(item: TaskItem, answer: str | None) -> float:
    return 0.0 if answer is None else vqa_accuracy(answer, item.references)


def _cider(items: Sequence[TaskItem], processed: Mapping[str, str]) -> np.ndarray:
    """An item that could not be asked counts as an empty caption, its references all the same."""
    references = {item.key: item.references for item in items if item.references}
    captions = {key: processed.get(key, "") for key in references}
    scores = dict(zip(references, cider_scores(captions, references), strict=True))
    return np.array([scores.get(item.key, 0.0) for item in items])
