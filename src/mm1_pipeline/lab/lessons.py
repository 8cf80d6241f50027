"""From the results of a grid to verdicts on the paper's lessons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from mm1_pipeline.config.lab import (
    AblateConfig,
    Expectation,
    GridConfig,
    LessonConfig,
    LrLawConfig,
)
from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.lab.lr_law import Run
from mm1_pipeline.lab.results import (
    PARAMETERS,
    held_out_losses,
    item_scores,
    read_json,
    task_values,
)
from mm1_pipeline.lab.statistics import Claim, Difference, judge, paired_difference, seed_difference

_SIGNS = {Expectation.HIGHER: 1, Expectation.LOWER: -1, Expectation.EQUAL: 0}


def judge_lessons(config: AblateConfig, results: Path) -> dict[str, Any]:
    """Gives the verdict on each lesson from the runs of its two arms.

    Args:
        config: Lessons, arms, seeds.
        results: Holds `<arm>/seed<seed>/` as `run_grid` wrote it.

    Returns:
        Content of lessons.json: per lesson the two arms, the paper's figure, our difference with
        its interval, seeds and verdict; and the mean scores of every arm.

    Raises:
        ValueError: A run lacks a task, number of shots or stream that a lesson counts.
    """
    claims = {
        name: Claim(
            name, _difference(config, lesson, results), _SIGNS[lesson.expected], lesson.margin
        )
        for name, lesson in config.chosen_lessons.items()
    }
    judgements = judge(list(claims.values()), min_seeds=config.min_seeds)
    lessons = {
        name: {
            "title": lesson.title,
            "first": lesson.first,
            "second": lesson.second,
            "expected": lesson.expected.value,
            "measure": _measure(lesson),
            "paper": lesson.paper,
            **judgement.as_json(),
        }
        for (name, lesson), judgement in zip(config.chosen_lessons.items(), judgements, strict=True)
    }
    arms = {
        arm: {"overrides": overrides, "scores": _mean_scores(config.grid, arm, results)}
        for arm, overrides in config.grid.chosen_arms.items()
    }
    return {"lessons": lessons, "arms": arms, "seeds": list(config.grid.chosen_seeds)}


def read_runs(config: LrLawConfig, grid: GridConfig, results: Path) -> list[Run]:
    """Reads the runs of a learning-rate grid.

    Args:
        config: Where size and rate stand, and what judges a run.
        grid: The arms that were run.
        results: Holds `<arm>/seed<seed>/`.
    """
    runs = []
    for arm in grid.chosen_arms:
        for seed in grid.chosen_seeds:
            folder = results / arm / f"seed{seed}"
            parameters = read_json(folder / PARAMETERS)
            decoder = TypeAdapter(DecoderConfig).validate_python(
                _at(parameters, config.decoder_path)
            )
            rate = float(_at(parameters, config.rate_path))
            if config.scores:
                items = item_scores(folder, grid.model, config.scores)
                value = float(np.mean(list(items.values())))
            else:
                value = float(np.mean(list(held_out_losses(folder, grid.model).values())))
            runs.append(Run(decoder.non_embedding_parameters, rate, seed, value))
    return runs


def learning_rate_grid(config: LrLawConfig) -> GridConfig:
    """Every size with every rate, as the arms of a grid."""
    arms = {
        f"{size}-lr{rate:.1e}".replace(".", "_").replace("+", ""): {
            **config.overrides,
            **overrides,
            config.rate_path: rate,
        }
        for size, overrides in config.sizes.items()
        for rate in config.learning_rates
    }
    return GridConfig(
        arms=arms,
        seeds=config.seeds,
        goal=config.goal,
        model=config.model,
        store=config.store,
        any_code=config.any_code,
        num_workers=config.num_workers,
    )


def _difference(config: AblateConfig, lesson: LessonConfig, results: Path) -> Difference:
    grid = config.grid
    if lesson.held_out is not None:
        first, second = (
            [
                -_held_out(results / arm / f"seed{seed}", grid.model, lesson.held_out)
                for seed in grid.chosen_seeds
            ]
            for arm in (lesson.first, lesson.second)
        )
        return seed_difference(first, second)
    per_arm = [
        [
            item_scores(results / arm / f"seed{seed}", grid.model, lesson.scores)
            for seed in grid.chosen_seeds
        ]
        for arm in (lesson.first, lesson.second)
    ]
    keys = list(per_arm[0][0])
    for rows in per_arm:
        for row in rows:
            if list(row) != keys:
                raise ValueError(
                    f"lessons of {lesson.first} and {lesson.second}: found other items in two "
                    "runs; arms must be evaluated on the same tasks and records."
                )
    first, second = (np.array([list(row.values()) for row in rows]) for rows in per_arm)
    # One item asked with 4 and 8 shots, or in two tasks of one source, is one item.
    groups = [key[-1] for key in keys]
    return paired_difference(
        first, second, groups, num_samples=config.bootstrap_samples, seed=config.seed
    )


def _measure(lesson: LessonConfig) -> str:
    if lesson.held_out is not None:
        return f"held-out loss of {lesson.held_out}, negative"
    return ", ".join(
        f"{task} {'/'.join(map(str, shots))}-shot" for task, shots in lesson.scores.items()
    )


def _held_out(folder: Path, model: str, stream: str) -> float:
    losses = held_out_losses(folder, model)
    if stream not in losses:
        raise ValueError(
            f"held_out: found {stream!r}, expected a stream with held-out sequences: "
            f"{', '.join(losses)}."
        )
    return losses[stream]


def _mean_scores(grid: GridConfig, arm: str, results: Path) -> dict[str, dict[str, float]]:
    """Mean over seeds of every task's value, by task and shots."""
    tasks: dict[str, dict[str, list[float]]] = {}
    for seed in grid.chosen_seeds:
        for task, values in task_values(results / arm / f"seed{seed}", grid.model).items():
            for shots, value in values.items():
                tasks.setdefault(task, {}).setdefault(shots, []).append(value)
    return {
        task: {shots: round(float(np.mean(values)), 4) for shots, values in found.items()}
        for task, found in tasks.items()
    }


def _at(parameters: Mapping[str, Any], path: str) -> Any:
    value: Any = parameters
    for part in path.split("."):
        value = value[part]
    return value
