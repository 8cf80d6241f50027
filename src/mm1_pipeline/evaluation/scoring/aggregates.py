"""From scores of items to the number of a benchmark: mean, F1, sum over categories.

A statistic takes the weight of every item, so a bootstrap is the same statistic with other
weights: items of a group always have one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.evaluation.tasks import TaskItem

Statistic = Callable[[np.ndarray], float]
"""From the weights of the items, float64[n], to the benchmark's number."""

PERCENT = 100
MAX_CATEGORIES = 64
_DIGITS = 6


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> Statistic:
    """100 x mean of the first over mean of the second.

    Source: LLaVA-Bench's summary, which rounds the means to three digits before it divides.
    """

    def statistic(weights: np.ndarray) -> float:
        means = [round(float(weights @ marks / weights.sum()), 3) for marks in (above, below)]
        return PERCENT * means[0] / max(means[1], 1e-12)

    return statistic


def pope_statistic(items: Sequence[TaskItem], answers: Sequence[str]) -> Statistic:
    """Mean of the splits' F1 of `yes`, times 100."""
    splits = _masks(items)
    truth, given = _yes(items, answers)

    def statistic(weights: np.ndarray) -> float:
        scores = [_f1(weights[mask], truth[mask], given[mask]) for mask in splits.values()]
        return PERCENT * float(np.mean(scores))

    return statistic


def mme_statistic(items: Sequence[TaskItem], right: np.ndarray) -> Statistic:
    """Sum over categories of the accuracy by question and by image, each times 100.

    An image counts if both of its questions are right. Source: MME.
    """
    categories = _masks(items)
    whole = group_minimum(items, right)
    by_image = _group_share(items)

    def statistic(weights: np.ndarray) -> float:
        total = 0.0
        for mask in categories.values():
            if weights[mask].sum() > 0:
                images = weights[mask] * by_image[mask]
                total += float(weights[mask] @ right[mask] / weights[mask].sum())
                total += float(images @ whole[mask] / images.sum())
        return PERCENT * total

    return statistic


def circular_statistic(items: Sequence[TaskItem], right: np.ndarray) -> Statistic:
    """Share of questions that are right under every rotation, times 100."""
    whole, share = group_minimum(items, right), _group_share(items)
    return lambda weights: float(PERCENT * (weights * share) @ whole / (weights * share).sum())


def group_minimum(items: Sequence[TaskItem], values: np.ndarray) -> np.ndarray:
    """Each item's value replaced by the smallest of its group: one wrong makes all wrong."""
    smallest: dict[str, float] = {}
    for item, value in zip(items, values, strict=True):
        smallest[item.cluster] = min(float(value), smallest.get(item.cluster, np.inf))
    return np.array([smallest[item.cluster] for item in items])


def details(
    metric: Metric,
    items: Sequence[TaskItem],
    values: np.ndarray,
    answers: Sequence[str],
    marks: np.ndarray | None = None,
) -> dict[str, Any]:
    """What stands beside the number: parts of it by split, category or kind; empty without parts.

    Args:
        metric: The task's, which says what parts there are.
        items: n items, failed ones among them.
        values: float64[n], 0..1.
        answers: Processed answers; empty where an item failed.
        marks: float64[n, 2], a judge's for the answer and the reference answer, of ratios.
    """
    found: dict[str, Any] = {}
    for name, masks in _partitions(metric, items).items():
        parts = {
            part: {
                key: round(PERCENT * value, _DIGITS)
                for key, value in _part(metric, items, values, answers, marks, mask).items()
            }
            for part, mask in masks.items()
        }
        if name == "by_data_type":
            found[name] = {part: scores["mean"] for part, scores in parts.items()}
        else:
            found[name] = {
                part: {**scores, "n": int(masks[part].sum())} for part, scores in parts.items()
            }
    return found


def _part(
    metric: Metric,
    items: Sequence[TaskItem],
    values: np.ndarray,
    answers: Sequence[str],
    marks: np.ndarray | None,
    mask: np.ndarray,
) -> dict[str, float]:
    """Scores of the items of one part, 0..1."""
    match metric:
        case Metric.POPE_F1:
            truth, given = _yes(items, answers)
            return {
                "f1": _f1(np.ones(mask.sum()), truth[mask], given[mask]),
                "accuracy": float((truth[mask] == given[mask]).mean()),
                "yes_ratio": float(given[mask].mean()),
            }
        case Metric.MME_SCORE | Metric.CIRCULAR:
            whole, share = group_minimum(items, values), _group_share(items)
            of_groups = float(share[mask] @ whole[mask] / share[mask].sum())
            single = float(values[mask].mean())
            if metric == Metric.MME_SCORE:
                return {"accuracy": single, "accuracy_plus": of_groups}
            return {"circular": of_groups, "single": single}
        case Metric.JUDGE_RATIO if marks is not None:
            answer, reference = marks[mask].T
            return {
                "ratio": ratio_of_means(answer, reference)(np.ones(len(answer))) / PERCENT,
                "reference": float(reference.mean()) / _TOP_MARK,
                "answer": float(answer.mean()) / _TOP_MARK,
            }
    return {"mean": float(values[mask].mean())}


_TOP_MARK = 10
_BY_FACT = {"domain": "by_domain", "l2_category": "by_l2_category", "data_type": "by_data_type"}
"""Facts of items that scores are also given by."""


def _partitions(metric: Metric, items: Sequence[TaskItem]) -> dict[str, Mapping[str, np.ndarray]]:
    """The ways in which a benchmark's items are divided: name of the way -> part -> bool[n]."""
    found: dict[str, Mapping[str, np.ndarray]] = {}
    categories = _masks(items)
    if set(categories) != {""} and len(categories) <= MAX_CATEGORIES:
        found["by_category"] = categories
    if metric == Metric.JUDGE_GRADE:
        needed = [set(item.category.split("+")) - {""} for item in items]
        skills = sorted(set().union(*needed)) if needed else []
        if skills and len(skills) <= MAX_CATEGORIES:
            found["by_capability"] = {
                skill: np.array([skill in of_item for of_item in needed]) for skill in skills
            }
    for fact, name in _BY_FACT.items():
        parts = [item.facts.get(fact, "") for item in items]
        if any(parts):
            found[name] = {
                part: np.array([other == part for other in parts])
                for part in sorted(set(parts) - {""})
            }
    return found


def _masks(items: Sequence[TaskItem]) -> Mapping[str, np.ndarray]:
    names = dict.fromkeys(item.category for item in items)
    return {name: np.array([item.category == name for item in items]) for name in names}


def _group_share(items: Sequence[TaskItem]) -> np.ndarray:
    """1 / size of each item's group, so that groups weigh alike."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.cluster] = sizes.get(item.cluster, 0) + 1
    return np.array([1 / sizes[item.cluster] for item in items])


def _yes(items: Sequence[TaskItem], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Whether yes is right, and whether it was said; an item without an answer is wrong."""
    truth = np.array([item.references[:1] != ("no",) for item in items])
    said = zip(answers, truth, strict=True)
    given = np.array([answer == "yes" if answer else not right for answer, right in said])
    return truth, given


def _f1(weights: np.ndarray, truth: np.ndarray, given: np.ndarray) -> float:
    true_positives = 2 * float(weights @ (truth & given))
    wrong = float(weights @ (truth != given))
    return true_positives / (true_positives + wrong) if true_positives else 0.0
