"""Several sets of shots: the mean over them, and an uncertainty that holds how far they differ."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mm1_pipeline.config.evaluation import ShotDraw, TaskConfig
from mm1_pipeline.evaluation.comparison import compare_predictions
from mm1_pipeline.evaluation.evaluate import evaluate
from mm1_pipeline.evaluation.scoring.draws import AveragedScores, gain_over
from mm1_pipeline.evaluation.scoring.scoring import TaskScores
from typed_values import entry


def scores_of(values, details=None) -> TaskScores:
    values = np.asarray(values, dtype=np.float64)
    keys = tuple(str(number) for number in range(len(values)))
    rows = tuple({"id": key, "key": key, "failure": None} for key in keys)
    return TaskScores(values, keys, rows, details=details or {})


def test_the_worked_example():
    """Sets that differ by a constant: items' part 3, sets' part 4 / sqrt(3)."""
    items = np.random.default_rng(0).normal(0, 30, 100)
    items = (items - items.mean()) * 30 / items.std()
    draws = AveragedScores(tuple(scores_of(items + shift) for shift in (40, 44, 48)))
    summary = draws.summary(5_000, 0)
    assert summary["value"] == 44.0
    assert summary["draws"]["values"] == [40.0, 44.0, 48.0]
    assert summary["draws"]["stderr"] == pytest.approx(2.309, abs=1e-3)
    # Measured 3.783.
    assert summary["stderr"] == pytest.approx(3.786, rel=0.02)
    assert summary["n"] == 100
    # Paired, what both share falls out: the difference is 5 whatever the set or item.
    other = AveragedScores(tuple(scores_of(items + shift) for shift in (35, 39, 43)))
    gain = gain_over(draws, other, 500, 0)
    assert gain == {"mean": 5.0, "low": 5.0, "high": 5.0}
    # The sets of one alone differ: then the gain knows no better than the sets' part.
    steady = AveragedScores(tuple(scores_of(items + 40) for _ in range(3)))
    gain = gain_over(draws, steady, 5_000, 0)
    # 1.96 x 2.31 = 4.5; measured 4.9: three sets drawn again have 10 different means.
    assert gain["mean"] == 4.0
    assert (gain["high"] - gain["low"]) / 2 == pytest.approx(4.5, abs=0.5)


def test_the_standard_error_is_that_of_scores_drawn_anew():
    """Against the spread of many evaluations, each with new items and new sets of shots."""
    rng = np.random.default_rng(0)
    num_items, num_draws, errors, means = 150, 4, [], []
    for _ in range(300):
        items = rng.normal(50, 20, num_items)
        sets = rng.normal(0, 3, (num_draws, 1))
        answers = items + sets + rng.normal(0, 25, (num_draws, num_items))
        scores = AveragedScores(tuple(scores_of(row) for row in answers))
        errors.append(scores.summary(60, 0)["stderr"])
        means.append(scores.value)
    # True: sqrt((20^2 + 25^2 / 4) / 150 + 3^2 / 4) = 2.44; with what is counted twice, 2.65.
    assert np.std(means) == pytest.approx(2.44, rel=0.15)
    assert 2.44 * 0.95 < np.sqrt(np.mean(np.square(errors))) < 2.65 * 1.08


def test_details_are_means_and_failures_are_counted_once():
    first = scores_of([0, 100], {"by_category": {"a": {"mean": 10.0, "n": 2}}})
    second = scores_of([0, 50], {"by_category": {"a": {"mean": 20.0, "n": 2}}})
    failed = dataclasses.replace(first, rows=({**first.rows[0], "failure": "torn"}, first.rows[1]))
    summary = AveragedScores((failed, second)).summary(10, 0)
    assert summary["details"] == {"by_category": {"a": {"mean": 15.0, "n": 2}}}
    assert summary["failed"] == 1


@pytest.mark.parametrize("shot_draw", ShotDraw)
def test_a_task_with_three_sets_of_shots(world, tmp_path, shot_draw):
    tasks = {
        name: dataclasses.replace(task, num_shot_draws=3, shot_draw=shot_draw)
        for name, task in world.config.tasks.items()
    }
    config = dataclasses.replace(world.config, tasks=tasks)
    models, inputs = {"pretrain": world.model}, world.inputs()
    found = evaluate(config, models, **inputs, output_dir=tmp_path / "three").evaluation
    alone = {n: dataclasses.replace(t, shot_draw=shot_draw) for n, t in world.config.tasks.items()}
    config = dataclasses.replace(config, tasks=alone)
    one = evaluate(config, models, **inputs, output_dir=tmp_path / "one").evaluation
    for task in ("captions", "questions"):
        three, single = (run["models"]["pretrain"]["tasks"][task]["shots"] for run in (found, one))
        assert three["0"] == single["0"]  # without shots, there is one way to ask
        draws = three["2"]["draws"]["values"]
        assert draws[0] == single["2"]["value"]
        assert three["2"]["value"] == pytest.approx(np.mean(draws), abs=1e-5)
        assert three["2"]["n"] == single["2"]["n"]
        gain = three["2"]["gain_over_blind"]
        assert gain["low"] <= gain["mean"] <= gain["high"]
    path = tmp_path / "three" / "pretrain" / "questions_2shot.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 3 * 12
    shown = {row["draw"]: row["shots"] for row in rows if row["key"] == "question 3"}
    assert len(set(map(tuple, shown.values()))) == 3
    for row in rows:
        assert row["key"] not in row["shots"]
    (comparison,) = [
        found
        for found in compare_predictions(
            tmp_path / "three" / "pretrain", tmp_path / "three" / "pretrain:blind", 50
        )
        if (found.task, found.shots) == ("questions", 2)
    ]
    assert comparison.count == 36


def test_parameters_are_checked():
    files = {"data": "somewhere"}
    with pytest.raises(ValueError, match="num_shot_draws: found 0"):
        entry(TaskConfig, task="mmmu_val", files=files, num_shot_draws=0)
    with pytest.raises(ValueError, match="num_shot_draws: found 2 of a task with a file"):
        entry(TaskConfig, task="mmmu_test", files=files, num_shot_draws=2)
