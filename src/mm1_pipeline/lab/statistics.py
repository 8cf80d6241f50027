"""Whether two arms differ, and how sure that is.

An arm is a recipe trained with several seeds and asked the same items each time. A difference
between two arms varies over seeds (another start, another order of data) and over items
(another test set), and both count: three seeds asked a thousand items are not three thousand
independent answers.

The standard error is a bootstrap's over seeds and items. Its interval takes Student's t, not the
bootstrap's percentiles: percentiles of three seeds are far too narrow.

Shape letters: S seeds, I items, G groups of items that are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.05
"""A lesson is shown if chance alone would show it at most this often."""

NUM_SAMPLES = 2_000

Floats = NDArray[np.float64]


class Verdict(StrEnum):
    """What a comparison says about a lesson."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    """Too little data to tell, or no effect: an interval that holds both."""
    CONTRADICTED = "contradicted"


class ArmDifference(NamedTuple):
    """Mean of first - second arm with its 95 % interval."""

    mean: float
    low: float
    high: float
    stderr: float
    degrees_of_freedom: float
    """Of Student's t: between seeds - 1, where seeds vary most, and items - 1."""
    num_seeds: int
    num_items: int

    @property
    def is_testable(self) -> bool:
        """Whether variation over seeds is known at all."""
        return self.num_seeds > 1

    def probability_above(self, value: float) -> float:
        """How often chance alone gives a mean as high as this if the truth is `value`."""
        if self.stderr == 0:
            return float(self.mean <= value)
        statistic = (self.mean - value) / self.stderr
        return float(stats.t.sf(statistic, self.degrees_of_freedom))

    def probability_below(self, value: float) -> float:
        """How often chance alone gives a mean as low as this if the truth is `value`."""
        return self.turned().probability_above(-value)

    def turned(self) -> ArmDifference:
        """Second - first."""
        return self._replace(mean=-self.mean, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class Claim:
    """What a lesson says about a difference.

    Attributes:
        name: The lesson.
        difference: Measured, first - second.
        sign: 1 if first should be better, -1 if worse; 0 if the two should be equal.
        margin: With sign 0, the difference that would still be called negligible.
    """

    name: str
    difference: ArmDifference
    sign: int
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.sign not in (-1, 0, 1):
            raise ValueError(f"{self.name}: found sign {self.sign}, expected -1, 0 or 1.")
        if (self.sign == 0) != (self.margin > 0):
            raise ValueError(
                f"{self.name}: found sign {self.sign} with margin {self.margin}; a margin above 0 "
                "belongs to sign 0, and to it only."
            )

    def p_shown(self) -> float:
        """How often chance alone shows the claim as clearly although it is false.

        A direction is tested two-sided: half of the level belongs to the other direction. For
        equality the two one-sided tests (TOST) must both reject a difference of the margin.
        """
        if self.sign:
            return min(1.0, 2 * self._signed().probability_above(0.0))
        above = self.difference.probability_above(-self.margin)
        return max(above, self.difference.probability_below(self.margin))

    def p_contradicted(self) -> float:
        """How often chance alone contradicts the claim as clearly although it is true."""
        if self.sign:
            return min(1.0, 2 * self._signed().probability_below(0.0))
        above = self.difference.probability_above(self.margin)
        return min(1.0, 2 * min(above, self.difference.probability_below(-self.margin)))

    def _signed(self) -> ArmDifference:
        return self.difference if self.sign > 0 else self.difference.turned()


class JudgedClaim(NamedTuple):
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict
    p_shown: float
    """Adjusted for the number of claims."""
    p_contradicted: float
    reason: str

    def as_json(self) -> dict[str, Any]:
        """For lessons.json."""
        difference = self.claim.difference
        return {
            "delta": round(difference.mean, 6),
            "interval": [round(difference.low, 6), round(difference.high, 6)],
            "stderr": round(difference.stderr, 6),
            "seeds": difference.num_seeds,
            "items": difference.num_items,
            "margin": self.claim.margin or None,
            "p_shown": float(f"{self.p_shown:.4g}"),
            "p_contradicted": float(f"{self.p_contradicted:.4g}"),
            "verdict": self.verdict.value,
            "reason": self.reason,
        }


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> ArmDifference:
    """Compares two arms that were asked the same items.

    A resample draws seeds, then items, the same items for every drawn seed, since all were asked
    the same. Seeds are drawn as pairs. A resample of S seeds varies by (S - 1) / S of what S new
    ones would, which is put right; so for items.

    Args:
        first: float[S, I], scores of the first arm.
        second: float[S, I], the same seeds and items in the same order.
        groups: What each item belongs to, for instance its image; items of one group are drawn
            together. None makes each item its own.
        num_samples: Resamples of the bootstrap.
        seed: Same seed, same resamples.

    Returns:
        The mean difference with its 95 % interval. With one seed, variation over seeds is
        unknown, and the interval is over items alone.

    Raises:
        ValueError: The shapes differ, or there are fewer than two groups of items.
    """
    differences = _differences(first, second)
    sums, counts = _group_totals(differences, groups)
    num_seeds, num_groups = sums.shape
    if num_groups < 2:
        raise ValueError(
            f"Found {num_groups} group(s) of items, expected at least 2: one has no variation."
        )
    rng = np.random.default_rng(seed)
    seed_weights = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, num_samples)
    item_weights = rng.multinomial(num_groups, [1 / num_groups] * num_groups, num_samples)
    # A resample is a weight a seed and a weight a group: all are taken in three products.
    totals = ((seed_weights / num_seeds) @ sums * item_weights).sum(axis=1)
    means = totals / (item_weights @ counts)
    variance = float(means.var(ddof=1))
    over_seeds, over_items = _variances(sums, counts)
    missing = over_items / num_groups
    if num_seeds > 1:
        missing += over_seeds / num_seeds
    stderr = float(np.sqrt(variance + missing))
    freedom = _degrees_of_freedom(over_seeds, num_seeds, over_items, num_groups)
    mean = float(sums.sum() / (num_seeds * counts.sum()))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * stderr
    return ArmDifference(mean, mean - half, mean + half, stderr, freedom, *differences.shape)


def seed_difference(first: ArrayLike, second: ArrayLike) -> ArmDifference:
    """Compares two arms by one number a seed, such as a held-out loss: Student's paired test.

    Args:
        first: float[S].
        second: float[S], the same seeds.

    Returns:
        The mean difference; with one seed without an interval.

    Raises:
        ValueError: The shapes differ.
    """
    differences = _differences(np.atleast_2d(first), np.atleast_2d(second))[0]
    num_seeds, mean = len(differences), float(differences.mean())
    if num_seeds == 1:
        return ArmDifference(mean, mean, mean, 0.0, 1.0, 1, 1)
    stderr = float(differences.std(ddof=1)) / math.sqrt(num_seeds)
    half = float(stats.t.ppf(1 - LEVEL / 2, num_seeds - 1)) * stderr
    return ArmDifference(mean, mean - half, mean + half, stderr, num_seeds - 1.0, num_seeds, 1)


def judge(
    claims: Sequence[Claim], *, level: float = LEVEL, min_seeds: int = 2
) -> list[JudgedClaim]:
    """Gives the verdict on each of several claims, which are tested together.

    Of all claims that are false, chance shows any at most `level` of the time (Holm's
    correction); the same holds for contradicting true ones.

    Args:
        claims: All comparisons of a report, or the more one makes the more chance would show.
        level: 0.05 unless given.
        min_seeds: Fewer show nothing and contradict nothing.

    Returns:
        In the order of the claims.
    """
    shown = holm([claim.p_shown() for claim in claims])
    against = holm([claim.p_contradicted() for claim in claims])
    found = []
    for claim, p_shown, p_contradicted in zip(claims, shown, against, strict=True):
        num_seeds = claim.difference.num_seeds
        if not claim.difference.is_testable or num_seeds < min_seeds:
            verdict = Verdict.NOT_SHOWN
            reason = f"{num_seeds} seed(s), at least {max(2, min_seeds)} are needed"
        elif p_shown <= level:
            verdict, reason = Verdict.SHOWN, ""
        elif p_contradicted <= level:
            verdict, reason = Verdict.CONTRADICTED, ""
        else:
            verdict, reason = Verdict.NOT_SHOWN, _why_not_shown(claim, len(claims), level)
        found.append(JudgedClaim(claim, verdict, p_shown, p_contradicted, reason))
    return found


def _why_not_shown(claim: Claim, num_claims: int, level: float) -> str:
    for probability, says in (
        (claim.p_shown(), "for it"),
        (claim.p_contradicted(), "against it"),
    ):
        if probability <= level:
            return (
                f"alone it would speak {says} (p = {probability:.2g}), but chance gives that too "
                f"easily among {num_claims} tested together; more seeds would tell"
            )
    return "the interval holds both"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number, by Holm's step-down.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one
    before it. Holds whatever the dependence between the tests.

    Args:
        p_values: In any order.

    Returns:
        Adjusted, in the same order, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    result = np.empty(len(order))
    result[order] = adjusted
    return result.tolist()


def _differences(first: ArrayLike, second: ArrayLike) -> Floats:
    one, two = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if one.shape != two.shape or one.ndim != 2 or not one.size:
        raise ValueError(
            f"Found scores of shape {list(one.shape)} and {list(two.shape)}, expected the same "
            "[seeds, items] of both arms. Evaluate both with the same seeds and tasks."
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ValueError("Found scores that are not finite; an arm's training failed.")
    return one - two


def _group_totals(differences: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sums float[S, G] and numbers of items float[G]."""
    num_items = differences.shape[1]
    if groups is None:
        return differences, np.ones(num_items)
    if len(groups) != num_items:
        raise ValueError(f"Found {len(groups)} groups for {num_items} items, expected one each.")
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    members = np.zeros((num_items, len(number)))
    members[np.arange(num_items), [number[group] for group in groups]] = 1
    return differences @ members, members.sum(axis=0)


def _variances(sums: Floats, counts: Floats) -> tuple[float, float]:
    """What seeds and what groups of items add to the variance of the mean.

    A seed's and an item's own noise is in both, so that their sum is a little too large.
    """
    num_seeds, num_groups = sums.shape
    seed_means = sums.sum(axis=1) / counts.sum()
    over_seeds = float(seed_means.var(ddof=1)) / num_seeds if num_seeds > 1 else 0.0
    # Of a ratio of sums: groups of more items weigh more.
    residuals = sums.mean(axis=0) - seed_means.mean() * counts
    over_items = float((residuals**2).sum()) / (num_groups - 1) * num_groups / counts.sum() ** 2
    return over_seeds, over_items


def _degrees_of_freedom(
    over_seeds: float, num_seeds: int, over_items: float, num_items: int
) -> float:
    """Welch and Satterthwaite's for a sum of two estimated variances."""
    total = over_seeds + over_items
    if total == 0:
        return float(num_items - 1)
    parts = over_items**2 / (num_items - 1)
    if num_seeds > 1:
        parts += over_seeds**2 / (num_seeds - 1)
    return total**2 / parts if parts else float(num_items - 1)
