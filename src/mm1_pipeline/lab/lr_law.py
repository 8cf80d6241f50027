"""The best learning rate as a function of a decoder's size.

For each size, runs at several rates give a curve whose best point is taken from a parabola over
ln(rate). A line through ln(best rate) over ln(N) is the law: eta = exp(slope ln N + intercept).

Source: MM1, Pre-training (grid search at 9M, 85M, 302M, 1.2B; linear regression in log space);
N leaves the embeddings out, which is unconfirmed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from mm1_pipeline.config.lab import LawFitConfig
from mm1_pipeline.config.training import LearningRateLaw
from mm1_pipeline.ground.files import read_json

MIN_RATES = 3
"""A parabola has three coefficients."""

MIN_SIZES = 2
"""A line has two."""

_PERCENTILES = (2.5, 97.5)

Floats = NDArray[np.float64]


class Run(NamedTuple):
    """One finished training."""

    non_embedding_parameters: int
    learning_rate: float
    """Peak."""
    seed: int
    value: float
    """Loss or score; not finite if the training diverged."""


class BootstrapInterval(NamedTuple):
    """95 % of the bootstrap's resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class SizeFit:
    """The best learning rate of one size.

    Attributes:
        size: Non-embedding parameters.
        runs: All its runs, by rate and seed.
        best: Where the parabola is best.
        interval: Of `best`.
        is_inside: Whether the best lies between tried rates. If not, it is only known to lie
            beyond them, and the grid should be widened.
        parabola: value = a x^2 + b x + c, x = ln(rate).
        num_fitted: Runs that the parabola was fitted to.
        num_diverged: Runs without a finite value, which are left out.
    """

    size: int
    runs: tuple[Run, ...]
    best: float
    interval: BootstrapInterval
    is_inside: bool
    parabola: tuple[float, float, float]
    num_fitted: int
    num_diverged: int


@dataclass(frozen=True)
class LawFit:
    """The law through all sizes.

    Attributes:
        sizes: Rising.
        slope: Of ln(best rate) over ln(N).
        intercept: At ln(N) = 0.
        slope_interval: From resampled runs.
        intercept_interval: From resampled runs; it hangs on the slope, as ln(N) = 0 is far away.
        r_squared: Share of the variance of ln(best rate) that the line explains; 1 for two sizes.
        predictions: Rate and interval by target size.
        higher_is_better: How runs were judged.
    """

    sizes: tuple[SizeFit, ...]
    slope: float
    intercept: float
    slope_interval: BootstrapInterval
    intercept_interval: BootstrapInterval
    r_squared: float
    predictions: dict[int, tuple[float, BootstrapInterval]]
    higher_is_better: bool

    @property
    def law(self) -> LearningRateLaw:
        """As the parameters that a training takes."""
        return LearningRateLaw(slope=self.slope, intercept=self.intercept)

    def as_json(self) -> dict[str, Any]:
        """Content of lr_law.json."""
        paper = LearningRateLaw()
        return {
            "points": [_point(fit) for fit in self.sizes],
            "slope": self.slope,
            "slope_interval": list(self.slope_interval),
            "intercept": self.intercept,
            "intercept_interval": list(self.intercept_interval),
            "r_squared": self.r_squared,
            "higher_is_better": self.higher_is_better,
            "predictions": [
                {
                    "non_embedding_parameters": size,
                    "learning_rate": rate,
                    "interval": list(interval),
                    "paper": paper.peak_learning_rate(size),
                }
                for size, (rate, interval) in self.predictions.items()
            ],
            "paper": {"slope": paper.slope, "intercept": paper.intercept},
        }


def fit_law(config: LawFitConfig, runs: Iterable[Run]) -> LawFit:
    """Fits the law to finished runs.

    Intervals come from resampled residuals of each size's parabola: they hold what seeds and
    rates add, not that a line may be the wrong shape, which `r_squared` tells. A resample whose
    parabola has no best takes the best rate that was tried.

    Args:
        config: How values are judged and fitted.
        runs: Several rates for each of several sizes; seeds at will.

    Returns:
        The law with intervals and predictions.

    Raises:
        ValueError: There are fewer than two sizes, or a size has fewer than three rates left.
    """
    sign = -1.0 if config.higher_is_better else 1.0
    by_size: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_size[run.non_embedding_parameters].append(run)
    if len(by_size) < MIN_SIZES:
        raise ValueError(
            f"Found runs of {len(by_size)} size(s), expected at least {MIN_SIZES}: a law needs "
            "sizes to differ."
        )
    rng = np.random.default_rng(config.seed)
    sizes = sorted(by_size)
    fits = [_fit_size(config, size, sorted(by_size[size]), sign, rng) for size in sizes]
    log_sizes = np.log(np.array(sizes, dtype=np.float64))
    best = np.log([fit.best for fit, _ in fits])
    resampled = np.stack([bests for _, bests in fits], axis=1)  # [samples, sizes]
    line = LinearRegression().fit(log_sizes[:, None], best)
    # One fit with many targets: each resample is a column.
    lines = LinearRegression().fit(log_sizes[:, None], resampled.T)
    slopes, intercepts = lines.coef_[:, 0], np.asarray(lines.intercept_)
    slope, intercept = float(line.coef_[0]), float(line.intercept_)
    return LawFit(
        sizes=tuple(fit for fit, _ in fits),
        slope=slope,
        intercept=intercept,
        slope_interval=_interval(slopes),
        intercept_interval=_interval(intercepts),
        r_squared=float(line.score(log_sizes[:, None], best)),
        predictions={
            size: (
                math.exp(slope * math.log(size) + intercept),
                _interval(np.exp(slopes * math.log(size) + intercepts)),
            )
            for size in config.target_sizes
        },
        higher_is_better=config.higher_is_better,
    )


def read_law(path: Path) -> LearningRateLaw:
    """Takes slope and intercept from an lr_law.json, as the parameters of a training.

    Raises:
        ValueError: The file holds no law.
    """
    content = read_json(path)
    found = {name: content.get(name) for name in ("slope", "intercept")}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in found.values()):
        raise ValueError(f"{path}: found {found}, expected a slope and an intercept of lr_law.")
    return LearningRateLaw(**found)


def _fit_size(
    config: LawFitConfig, size: int, runs: Sequence[Run], sign: float, rng: np.random.Generator
) -> tuple[SizeFit, Floats]:
    """One size's best rate, and ln of it in every resample."""
    finite = [run for run in runs if math.isfinite(run.value)]
    rates = sorted({run.learning_rate for run in finite})
    if len(rates) < MIN_RATES:
        raise ValueError(
            f"Found {len(rates)} rate(s) with a finite value for {size:,} parameters, expected at "
            f"least {MIN_RATES}: {rates}. Try more rates, lower ones if trainings diverged."
        )
    means = {
        rate: np.mean([sign * run.value for run in finite if run.learning_rate == rate])
        for rate in rates
    }
    # At an end of the grid the window keeps its number of rates, or no parabola would fit.
    place = min(range(len(rates)), key=lambda index: means[rates[index]])
    width = min(len(rates), 2 * config.max_distance + 1)
    first = min(max(0, place - config.max_distance), len(rates) - width)
    window = set(rates[first : first + width])
    fitted = [run for run in finite if run.learning_rate in window]
    x = np.log([run.learning_rate for run in fitted])
    y = np.array([sign * run.value for run in fitted])
    # Centred, or x^2 and x are nearly the same column.
    centre = x.mean()
    columns = np.stack([(x - centre) ** 2, x - centre, np.ones_like(x)], axis=1)
    solve = np.linalg.pinv(columns)
    coefficients = solve @ y
    limits = float(x.min()), float(x.max())
    vertex, is_inside = _vertices(coefficients[:, None], columns, centre, limits)
    noise = _residuals(columns, solve, y)
    drawn = noise[rng.integers(0, len(noise), (config.bootstrap_samples, len(noise)))]
    resampled = solve @ (columns @ coefficients + drawn).T  # [3, samples]
    bests, _ = _vertices(resampled, columns, centre, limits)
    a, b, c = (float(value) for value in sign * coefficients)
    fit = SizeFit(
        size=size,
        runs=tuple(runs),
        best=math.exp(vertex[0]),
        interval=_interval(np.exp(bests)),
        is_inside=bool(is_inside[0]),
        parabola=(a, b - 2 * a * centre, a * centre**2 - b * centre + c),
        num_fitted=len(fitted),
        num_diverged=len(runs) - len(finite),
    )
    return fit, bests


def _vertices(
    coefficients: Floats, columns: Floats, centre: float, limits: tuple[float, float]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Where parabolas are lowest within the tried rates, and whether that is their vertex."""
    a, b, _ = coefficients
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = centre - b / (2 * a)
    inside = (a > 0) & (vertex > limits[0]) & (vertex < limits[1])
    tried = columns[:, 1] + centre
    lowest = tried[np.argmin(columns @ coefficients, axis=0)]
    return np.where(inside, vertex, lowest), inside


def _residuals(columns: Floats, solve: Floats, y: Floats) -> Floats:
    """Residuals of the parabola, as large as the noise: a fit takes some of it up."""
    leverage = np.einsum("ij,ji->i", columns, solve)
    residuals = (y - columns @ (solve @ y)) / np.sqrt(np.clip(1 - leverage, 1e-9, None))
    return residuals - residuals.mean()


def _interval(values: Floats) -> BootstrapInterval:
    low, high = np.percentile(values, _PERCENTILES)
    return BootstrapInterval(float(low), float(high))


def _point(fit: SizeFit) -> dict[str, Any]:
    return {
        "non_embedding_parameters": fit.size,
        "best_learning_rate": fit.best,
        "interval": list(fit.interval),
        "is_inside": fit.is_inside,
        "parabola": list(fit.parabola),
        "num_fitted": fit.num_fitted,
        "num_diverged": fit.num_diverged,
        "runs": [
            {
                "learning_rate": run.learning_rate,
                "seed": run.seed,
                "value": run.value if math.isfinite(run.value) else None,
            }
            for run in fit.runs
        ],
    }
