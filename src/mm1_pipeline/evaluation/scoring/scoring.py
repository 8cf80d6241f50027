"""From raw outputs to scored rows, and from rows to a number with its uncertainty."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.evaluation.answers.mathvista import mathvista_score
from mm1_pipeline.evaluation.answers.mmmu import open_answer_match
from mm1_pipeline.evaluation.answers.postprocess import cut_at_stop
from mm1_pipeline.evaluation.answers.processing import process_answer
from mm1_pipeline.evaluation.generation.answer_log import Answer
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.scoring.aggregates import (
    Statistic,
    circular_statistic,
    details,
    group_minimum,
    mme_statistic,
    pope_statistic,
    ratio_of_means,
)
from mm1_pipeline.evaluation.scoring.judge import Judge, Judged, judge_items, judge_marks
from mm1_pipeline.evaluation.scoring.metrics import (
    anls,
    cider_scores,
    exact_match,
    relaxed_accuracy,
    textvqa_accuracy,
    vizwiz_accuracy,
    vqa_accuracy,
)
from mm1_pipeline.evaluation.scoring.statistics import (
    bootstrap_means,
    bootstrap_statistic,
    paired_interval,
    standard_error,
)
from mm1_pipeline.evaluation.scoring.submission import Submission, make_submission
from mm1_pipeline.evaluation.tasks import Task, TaskItem

logger = logging.getLogger(__name__)

DIGITS = 6
"""Digits after the point of what is reported."""

_PERCENT = 100


@dataclass(frozen=True)
class TaskScores:
    """Scores of all items of a task, times 100.

    Attributes:
        values: float64[n]; an item that could not be asked has 0.
        images: The cluster of each item, its image or its group; items of one are resampled
            together.
        rows: What was asked, answered and scored, an item a row.
        statistic: The task's number as a function of the items' weights; None for the mean.
        count: What `n` counts where that is not the items.
        details: Parts of the number, such as its categories; empty without parts.
        submission: What is handed in to the benchmark's server; None writes no file.
    """

    values: np.ndarray
    images: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    statistic: Statistic | None = None
    count: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    submission: Submission | None = None

    @property
    def value(self) -> float:
        """The task's number."""
        if self.statistic is None:
            return float(self.values.mean())
        return self.statistic(np.ones(len(self.values)))

    def summary(self, num_samples: int, seed: int) -> dict[str, Any]:
        """The task's number, standard error, items, and those that could not be asked.

        Args:
            num_samples: Bootstrap resamples.
            seed: Same seed, same resamples.
        """
        if self.statistic is None:
            stderr = standard_error(self.values, num_samples, seed, self.images)
        else:
            stderr = float(self.resampled(num_samples, seed).std(ddof=1))
        return {
            "value": round(self.value, DIGITS),
            "stderr": round(stderr, DIGITS),
            "n": len(self.values) if self.count is None else self.count,
            "failed": sum(row["failure"] is not None for row in self.rows),
            **({"details": dict(self.details)} if self.details else {}),
        }

    def gain_over(self, other: TaskScores, num_samples: int, seed: int) -> dict[str, float]:
        """The difference to another model's number with its paired 95 % interval."""
        if self.statistic is None:
            interval = paired_interval(self.values, other.values, num_samples, seed, self.images)
            return {name: round(value, DIGITS) for name, value in interval._asdict().items()}
        # The same seed draws the same items for both.
        drawn = self.resampled(num_samples, seed) - other.resampled(num_samples, seed)
        return percentile_interval(self.value - other.value, drawn)

    def write(self, path: Path) -> None:
        """Writes the rows, one JSON object a line, and the file to hand in if there is one."""
        write_rows(path, self.rows)
        if self.submission is not None:
            to = path.with_suffix(f".submission{self.submission.ending}")
            to.write_text(self.submission.text, encoding="utf-8")

    def resampled(self, num_samples: int, seed: int) -> np.ndarray:
        """The task's number over resamples of whole clusters: float64[num_samples]."""
        if self.statistic is None:
            return bootstrap_means(self.values, num_samples, seed, self.images)
        return bootstrap_statistic(self.statistic, num_samples, seed, self.images)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows of predictions, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def percentile_interval(mean: float, drawn: np.ndarray) -> dict[str, float]:
    """A difference with the 2.5 and 97.5 percentiles of its resamples, as evaluation.json has it.

    Args:
        mean: The difference.
        drawn: float64[n], its resamples.
    """
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = {"mean": mean, "low": float(low), "high": float(high)}
    return {name: round(value, DIGITS) for name, value in found.items()}


def score_outputs(
    task: Task,
    num_shots: int,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    judge: Judge | None = None,
) -> TaskScores:
    """Scores the answers of one model on one task; what could not be answered is wrong.

    Args:
        task: Gives items, metric and stop strings.
        num_shots: Shots of the prompts.
        prompts: Prompt of every item that can be asked.
        answers: The answer to each prompt.
        judge: Marks the answers where the metric needs it, and extracts MathVista's.
    """
    asked = {prompt.key: prompt for prompt in prompts}
    answered = {prompt.key: answer for prompt, answer in zip(prompts, answers, strict=True)}
    raw = {key: answer.text for key, answer in answered.items() if answer.failure is None}
    failures = task.failures | {
        key: answer.failure for key, answer in answered.items() if answer.failure is not None
    }
    scored = _score(task, raw, judge)
    judged, processed = scored.judged, scored.processed
    failures |= {key: mark.failure for key, mark in judged.items() if mark.failure is not None}
    for key in sorted(failures.keys() - task.failures.keys()):
        logger.warning(
            "%s, %d shots: item %s counts as wrong: %s", task.name, num_shots, key, failures[key]
        )
    rows = tuple(
        {
            "id": f"{task.name}/{num_shots}shot/{item.key}",
            "source": task.config.source,
            "key": item.key,
            "prompt_sha256": asked[item.key].sha256 if item.key in asked else None,
            "shots": list(asked[item.key].shots) if item.key in asked else [],
            "raw_output": raw.get(item.key, ""),
            "processed_output": processed.get(item.key, ""),
            "references": list(item.references),
            "score": None if task.config.hidden_answers else round(float(value), DIGITS),
            "failure": failures.get(item.key),
            **_facts(task, item, judged.get(item.key)),
        }
        for item, value in zip(task.items, scored.values, strict=True)
    )
    return TaskScores(
        values=scored.values,
        images=tuple(item.cluster for item in task.items),
        rows=rows,
        statistic=scored.statistic,
        count=_count(task),
        details=details(
            task.config.metric,
            task.items,
            scored.right,
            scored.given,
            judge_marks(task.items, judged) if task.config.metric == Metric.JUDGE_RATIO else None,
        ),
        submission=make_submission(task.config, task.items, scored.given),
    )


def constant_value(task: Task, answer: str) -> float:
    """The task's number if every item that can be asked is answered alike, without a judge."""
    scored = _score(task, {item.key: answer for item in task.items if item.failure is None}, None)
    if scored.statistic is None:
        return float(scored.values.mean())
    return scored.statistic(np.ones(len(scored.values)))


class _Scored(NamedTuple):
    """What a metric makes of raw answers.

    Attributes:
        judged: By key.
        processed: By key.
        given: Processed answers of all items; empty where there is none.
        right: float64[n], of each item, 0..1 but for CIDEr and ratios.
        values: float64[n], times 100; of a group judged together, that of the group.
        statistic: As in `TaskScores`.
    """

    judged: Mapping[str, Judged]
    processed: Mapping[str, str]
    given: Sequence[str]
    right: np.ndarray
    values: np.ndarray
    statistic: Statistic | None


def _score(task: Task, raw: Mapping[str, str], judge: Judge | None) -> _Scored:
    judged = _judged(task, raw, judge)
    processed = {
        item.key: judged[item.key].text
        if item.key in judged
        else process_answer(raw[item.key], task.config, item)
        for item in task.items
        if item.key in raw
    }
    right = _score_items(task, processed, judged)
    given = [processed.get(item.key, "") for item in task.items]
    values = _PERCENT * (
        group_minimum(task.items, right) if task.config.metric == Metric.CIRCULAR else right
    )
    statistic = _statistic(task, right, given, judged)
    return _Scored(judged, processed, given, right, values, statistic)


def _facts(task: Task, item: TaskItem, judged: Judged | None) -> dict[str, Any]:
    """What a row says besides, of items out of official files."""
    if task.config.format is None:
        return {}
    facts: dict[str, Any] = {"question": item.question, "image": item.image}
    if item.options:
        facts["options"] = list(item.options)
    if item.category:
        facts["category"] = item.category
    if judged is not None:
        facts["judge"] = judged.record
    return facts


def _judged(task: Task, raw: Mapping[str, str], judge: Judge | None) -> dict[str, Judged]:
    items = [item for item in task.items if item.key in raw]
    texts = {key: cut_at_stop(text, task.config.stop).strip() for key, text in raw.items()}
    return judge_items(task.config, items, texts, judge)


def _score_items(
    task: Task, processed: Mapping[str, str], judged: Mapping[str, Judged]
) -> np.ndarray:
    """float64[n], 0..1 but for CIDEr and ratios; what was not answered is 0, and what is hidden."""
    if task.config.hidden_answers:
        return np.zeros(len(task.items))
    if task.config.metric == Metric.CIDER:
        return _cider(task, processed)
    return np.array(
        [
            judged[item.key].value
            if item.key in judged and judged[item.key].value is not None
            else score_answer(task.config.metric, item, processed.get(item.key))
            for item in task.items
        ],
        dtype=np.float64,
    )


def score_answer(metric: Metric, item: TaskItem, answer: str | None) -> float:
    """Score of one answer, 0..1, where the metric scores items alone.

    Args:
        metric: Any but CIDEr.
        item: With references and options.
        answer: As `process_answer` gives it; None if the item was not answered.
    """
    if answer is None:
        return 0.0
    match metric:
        case Metric.VQA_ACCURACY:
            return vqa_accuracy(answer, item.references)
        case Metric.TEXTVQA_ACCURACY:
            return textvqa_accuracy(answer, item.references)
        case Metric.VIZWIZ_ACCURACY:
            return vizwiz_accuracy(answer, item.references)
        case Metric.ANLS:
            return anls(answer, item.references)
        case Metric.RELAXED_ACCURACY:
            return relaxed_accuracy(answer, item.references)
        case Metric.CHOICE if not item.options:
            return open_answer_match(answer, item.references)
        case Metric.CHOICE | Metric.CIRCULAR | Metric.POPE_F1 | Metric.MME_SCORE:
            return float(answer in item.references)
        case Metric.MATHVISTA:
            return mathvista_score(answer, item)
        case Metric.JUDGE_RATIO | Metric.JUDGE_GRADE:
            return 0.0  # A reply that could not be read; the row's failure says so.
        case Metric.EXACT_MATCH | Metric.CIDER:
            return exact_match(answer, item.references)


def _statistic(
    task: Task, right: np.ndarray, given: Sequence[str], judged: Mapping[str, Judged]
) -> Statistic | None:
    match task.config.metric:
        case Metric.POPE_F1:
            return pope_statistic(task.items, given)
        case Metric.MME_SCORE:
            return mme_statistic(task.items, right)
        case Metric.CIRCULAR:
            return circular_statistic(task.items, right)
        case Metric.JUDGE_RATIO:
            return ratio_of_means(*judge_marks(task.items, judged).T)
    return None


def _count(task: Task) -> int | None:
    """Questions, not their rotations."""
    if task.config.metric == Metric.CIRCULAR:
        return len({item.cluster for item in task.items})
    return None


def _cider(task: Task, processed: Mapping[str, str]) -> np.ndarray:
    """An item that could not be asked counts as an empty caption, its references all the same."""
    references = {item.key: item.references for item in task.items if item.references}
    captions = {key: processed.get(key, "") for key in references}
    values = cider_scores(captions, references, task.config.caption_words)
    scores = dict(zip(references, values, strict=True))
    return np.array([scores.get(item.key, 0.0) for item in task.items])
