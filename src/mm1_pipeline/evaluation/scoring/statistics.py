"""How far a mean can be trusted: bootstrap standard errors and intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(
    values: np.ndarray,
    num_samples: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Means of resamples drawn with replacement.

    Values of one group are drawn together: ten questions on one image tell less than ten
    questions on ten images, and a bootstrap over questions would hide that.

    Args:
        values: float[n].
        num_samples: Resamples of the bootstrap.
        seed: Same seed, same resamples.
        groups: The group of each value; None makes each value a group of its own.

    Returns:
        float64[num_samples].
    """
    sums, counts = _group_totals(np.asarray(values, dtype=np.float64), groups)
    rng = np.random.default_rng(seed)
    means = np.empty(num_samples)
    for sample in range(num_samples):
        drawn = rng.integers(0, len(sums), len(sums))
        means[sample] = sums[drawn].sum() / counts[drawn].sum()
    return means


def standard_error(
    values: np.ndarray,
    num_samples: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> float:
    """Bootstrap standard error of the mean; for the arguments, see `bootstrap_means`."""
    return float(bootstrap_means(values, num_samples, seed, groups).std(ddof=1))


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    num_samples: int,
    seed: int,
    groups: Sequence[Hashable],
) -> np.ndarray:
    """Values of a statistic over resamples of whole groups, drawn as in `bootstrap_means`.

    Args:
        statistic: From the weights of the items, float64[n]: how often each was drawn.
        num_samples: Resamples of the bootstrap.
        seed: Same seed, same resamples.
        groups: n names or numbers; items of a group are drawn together.

    Returns:
        float64[num_samples].
    """
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    rng = np.random.default_rng(seed)
    found = np.empty(num_samples)
    for sample in range(num_samples):
        drawn = rng.integers(0, len(number), len(number))
        counts = np.bincount(drawn, minlength=len(number))
        found[sample] = statistic(counts[index].astype(np.float64))
    return found


def paired_interval(
    first: np.ndarray,
    second: np.ndarray,
    num_samples: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of first - second over the same items, with its bootstrap 95 % interval.

    Args:
        first: float[n].
        second: float[n], the same items in the same order.
        num_samples: Resamples of the bootstrap.
        seed: Same seed, same resamples.
        groups: The group of each item, as in `bootstrap_means`.

    Returns:
        The mean difference and the 2.5 and 97.5 percentiles of its resamples.
    """
    assert len(first) == len(second), (len(first), len(second))
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    means = bootstrap_means(differences, num_samples, seed, groups)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high))


def _group_totals(
    values: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    assert len(values), "a mean needs at least one value"
    if groups is None:
        return values, np.ones(len(values))
    assert len(groups) == len(values), (len(groups), len(values))
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    return np.bincount(index, values), np.bincount(index).astype(np.float64)
