"""Bootstrap against scipy's and against formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mm1_pipeline.evaluation.scoring.statistics import (
    bootstrap_means,
    paired_interval,
    standard_error,
)

RNG = np.random.default_rng(0)
VALUES = RNG.exponential(size=300)
OTHER = VALUES + RNG.normal(0.1, 0.5, size=300)


def test_standard_error_agrees_with_scipy():
    reference = stats.bootstrap((VALUES,), np.mean, n_resamples=4000, method="percentile", rng=1)
    # Monte Carlo error of 4,000 resamples is about 1.1 %; measured 0.9 %.
    assert standard_error(VALUES, 4000, seed=0) == pytest.approx(reference.standard_error, rel=0.05)


def test_paired_interval_agrees_with_scipy():
    reference = stats.bootstrap(
        (OTHER - VALUES,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    found = paired_interval(OTHER, VALUES, 4000, seed=0)
    width = reference.high - reference.low
    assert found.mean == pytest.approx((OTHER - VALUES).mean(), abs=1e-12)
    assert abs(found.low - reference.low) < 0.05 * width  # measured 0.013
    assert abs(found.high - reference.high) < 0.05 * width  # measured 0.011
    assert found.low < found.mean < found.high


def test_pairing_narrows_the_interval():
    paired = paired_interval(OTHER, VALUES, 1000, seed=0)
    shuffled = paired_interval(OTHER, RNG.permutation(VALUES), 1000, seed=0)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_repeated_values_in_groups_count_once():
    tenfold = np.repeat(VALUES, 10)
    groups = np.repeat(np.arange(len(VALUES)), 10).tolist()
    assert np.allclose(
        bootstrap_means(tenfold, 50, 0, groups), bootstrap_means(VALUES, 50, 0), atol=1e-12
    )
    # As single items they would seem sqrt(10) times more certain than they are.
    naive = standard_error(tenfold, 1000, 0)
    assert standard_error(tenfold, 1000, 0, groups) == pytest.approx(naive * 10**0.5, rel=0.1)


def test_same_seed_same_resamples():
    assert np.array_equal(bootstrap_means(VALUES, 20, 3), bootstrap_means(VALUES, 20, 3))
    assert not np.array_equal(bootstrap_means(VALUES, 20, 3), bootstrap_means(VALUES, 20, 4))


def test_groups_of_different_size_keep_the_mean_of_items():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    means = bootstrap_means(values, 4000, 0, ["a", "a", "a", "b"])
    assert set(means) == {0.0, 0.75, 1.0}
