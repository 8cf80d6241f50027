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


def weighted_mean(values: np.ndarray) -> Statistic:
    """Mean of the values."""
    return lambda weights: float(weights @ values / weights.sum())


def weighted_ratio(above: np.ndarray, below: np.ndarray) -> Statistic:
    """100 x sum of the first over sum of the second."""
    return lambda weights: float(PERCENT * (weights @ above) / max(weights @ below, 1e-12))


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
    metric: Metric, items: Sequence[TaskItem], values: np.ndarray, answers: Sequence[str]
) -> dict[str, Any]:
    """What stands beside the number: parts of it by split, category or kind; empty without parts.

    Args:
        metric: The task's.
        items: All items.
        values: float64[n], 0..1.
        answers: Processed answers; empty where an item failed.
    """
    masks = _masks(items)
    if set(masks) == {""} or len(masks) > MAX_CATEGORIES:
        return _kinds(items, values)
    match metric:
        case Metric.POPE_F1:
            truth, given = _yes(items, answers)
            parts = {
                name: {
                    "f1": _f1(np.ones(mask.sum()), truth[mask], given[mask]),
                    "accuracy": float((truth[mask] == given[mask]).mean()),
                    "yes_ratio": float(given[mask].mean()),
                }
                for name, mask in masks.items()
            }
        case Metric.MME_SCORE:
            whole, share = group_minimum(items, values), _group_share(items)
            parts = {
                name: {
                    "accuracy": float(values[mask].mean()),
                    "accuracy_plus": float(share[mask] @ whole[mask] / share[mask].sum()),
                }
                for name, mask in masks.items()
            }
        case Metric.CIRCULAR:
            whole, share = group_minimum(items, values), _group_share(items)
            parts = {
                name: {
                    "circular": float(share[mask] @ whole[mask] / share[mask].sum()),
                    "single": float(values[mask].mean()),
                }
                for name, mask in masks.items()
            }
        case _:
            parts = {name: {"mean": float(values[mask].mean())} for name, mask in masks.items()}
    sizes = {name: int(mask.sum()) for name, mask in masks.items()}
    return {
        "by_category": {
            name: {
                **{key: round(PERCENT * value, _DIGITS) for key, value in part.items()},
                "n": sizes[name],
            }
            for name, part in parts.items()
        },
        **_kinds(items, values),
    }


def _kinds(items: Sequence[TaskItem], values: np.ndarray) -> dict[str, Any]:
    """Means by kind of data, where a benchmark has images and videos."""
    kinds = [item.facts.get("data_type", "") for item in items]
    if not any(kinds):
        return {}
    return {
        "by_data_type": {
            kind: round(PERCENT * float(values[[other == kind for other in kinds]].mean()), _DIGITS)
            for kind in sorted(set(kinds) - {""})
        }
    }


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
