from __future__ import annotations

import random

from mm1_pipeline.reporting.series import (
    final_mean,
    mean_shares,
    points,
    running_mean,
    stream_names,
    thin,
    whole_training,
)


def _mean_by_definition(steps: list[int], values: list[float], window: int) -> list[float]:
    means = []
    for centre in steps:
        reach = min(centre - steps[0], steps[-1] - centre)
        before, after = min((window - 1) // 2, reach), min(window // 2, reach)
        near = [
            value
            for step, value in zip(steps, values, strict=True)
            if -before <= step - centre <= after
        ]
        means.append(sum(near) / len(near))
    return means


def test_running_mean_is_the_mean_of_the_window_around_each_step() -> None:
    rng = random.Random(0)
    steps = sorted(rng.sample(range(1, 400), 120))
    values = [rng.gauss(0, 1) for _ in steps]
    for window in (1, 2, 7, 10, 1_000):
        found = running_mean(steps, values, window)
        expected = _mean_by_definition(steps, values, window)
        # Worst seen: 4e-16; fsum against sum.
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-12


def test_a_window_of_one_step_changes_nothing() -> None:
    assert running_mean([1, 2, 3], [5.0, 1.0, 4.0], 1) == [5.0, 1.0, 4.0]


def test_running_mean_does_not_shift_a_slope() -> None:
    steps = list(range(100))
    slope = [float(step) for step in steps]
    for window in (11, 1_001):
        assert running_mean(steps, slope, window) == slope


def test_final_mean_takes_the_last_steps_only() -> None:
    assert final_mean([10, 20, 30, 40], [1.0, 2.0, 3.0, 5.0], 20) == 4.0
    assert final_mean([], [], 20) is None


def test_thinning_keeps_both_ends_and_order() -> None:
    kept = thin(range(100_000), 800)
    assert len(kept) == 800
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert kept == sorted(set(kept))
    assert thin([1, 2, 3], 800) == [1, 2, 3]


def test_points_leave_out_rows_without_the_number() -> None:
    rows = [
        {"step": 1, "losses": {"caption": 2.0}},
        {"step": 2, "losses": {"text": 3.0}},
        {"step": 3, "losses": {"caption": 1.0, "text": 2.5}},
    ]
    assert points(rows, "losses", "caption") == ([1, 3], [2.0, 1.0])
    assert points(rows, "timing", "seconds") == ([], [])
    assert stream_names(rows) == ["caption", "text"]


def test_whole_training_counts_steps_that_were_not_logged() -> None:
    every = [{"step": s, "positions": {"text": 10}} for s in range(1, 101)]
    assert whole_training(every, "positions", "text") == 1_000
    assert whole_training(every[9::10], "positions", "text") == 1_000


def test_mean_shares_count_absent_streams_as_zero() -> None:
    rows = [{"shares": {"caption": 1.0}}, {"shares": {"caption": 0.5, "text": 0.5}}, {"step": 3}]
    assert mean_shares(rows) == {"caption": 0.75, "text": 0.25}
