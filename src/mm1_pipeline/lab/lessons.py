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
    Goal,
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
from mm1_pipeline.lab.statistics import (
    ArmDifference,
    Claim,
    judge,
    paired_difference,
    seed_difference,
)

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
    measured = {
        name: _difference(config, lesson, results) for name, lesson in config.chosen_lessons.items()
    }
    claims = [
        Claim(name, measured[name][0], _SIGNS[lesson.expected], lesson.margin)
        for name, lesson in config.chosen_lessons.items()
    ]
    judgements = judge(claims, min_seeds=config.min_seeds)
    seeds_of = config.grid.seeds_of
    lessons = {
        name: {
            "title": lesson.title,
            "first": lesson.first,
            "second": lesson.second,
            "expected": lesson.expected.value,
            "measure": _measure(lesson),
            "model": lesson.model or config.grid.model,
            "paper": lesson.paper,
            **judgement.as_json(),
            "per_seed": dict(
                zip(map(str, seeds_of(lesson.first, lesson.second)), measured[name][1], strict=True)
            ),
        }
        for (name, lesson), judgement in zip(config.chosen_lessons.items(), judgements, strict=True)
    }
    arms = {
        arm: {
            "overrides": overrides,
            "goal": config.grid.goal_of(arm).value,
            "seeds": list(seeds_of(arm)),
            "positions": _num_positions(config.grid, arm, results),
            "scores": _mean_scores(config.grid, arm, results),
        }
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
        for seed in grid.seeds_of(arm):
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


def _difference(
    config: AblateConfig, lesson: LessonConfig, results: Path
) -> tuple[ArmDifference, list[float]]:
    """The difference of a lesson's arms, and its mean for each seed."""
    model = lesson.model or config.grid.model
    seeds = config.grid.seeds_of(lesson.first, lesson.second)
    runs = {
        arm: [results / arm / f"seed{seed}" for seed in seeds]
        for arm in (lesson.first, lesson.second)
    }
    if (stream := lesson.held_out) is not None:
        first, second = (
            [-_held_out(folder, model, stream) for folder in runs[arm]]
            for arm in (lesson.first, lesson.second)
        )
        per_seed = np.subtract(first, second)
        return seed_difference(first, second), per_seed.round(6).tolist()
    sides = (
        (lesson.first, lesson.scores),
        (lesson.second, lesson.second_scores or lesson.scores),
    )
    per_side = [
        [_paired_scores(item_scores(folder, model, tasks)) for folder in runs[arm]]
        for arm, tasks in sides
    ]
    keys = list(per_side[0][0])
    for rows in per_side:
        for row in rows:
            if list(row) != keys:
                raise ValueError(
                    f"lessons of {lesson.first} and {lesson.second}: found other items in two "
                    "runs; arms must be evaluated on the same tasks and records."
                )
    first, second = (np.array([list(row.values()) for row in rows]) for rows in per_side)
    # One item asked with 4 and 8 shots, or in two tasks of one source, is one item.
    groups = [key for _, key in keys]
    difference = paired_difference(
        first, second, groups, num_samples=config.bootstrap_samples, seed=config.seed
    )
    return difference, (first - second).mean(axis=1).round(6).tolist()


def _paired_scores(scores: Mapping[tuple[str, int, str], float]) -> dict[tuple[int, str], float]:
    """Scores by the number of their asking, in order, and the item: what two sides share."""
    numbers: dict[tuple[str, int], int] = {}
    return {
        (numbers.setdefault((task, shots), len(numbers)), key): score
        for (task, shots, key), score in scores.items()
    }


def _measure(lesson: LessonConfig) -> str:
    if lesson.held_out is not None:
        return f"held-out loss of {lesson.held_out}, negative"
    if not lesson.second_scores:
        return _asked(lesson.scores)
    return f"{_asked(lesson.scores)} beside {_asked(lesson.second_scores)}"


def _asked(scores: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{task} {'/'.join(map(str, shots))}-shot" for task, shots in scores.items())


def _held_out(folder: Path, model: str, stream: str) -> float:
    losses = held_out_losses(folder, model)
    if stream not in losses:
        raise ValueError(
            f"held_out: found {stream!r}, expected a stream with held-out sequences: "
            f"{', '.join(losses)}."
        )
    return losses[stream]


def _num_positions(grid: GridConfig, arm: str, results: Path) -> int:
    """Positions that a run of an arm is trained on, by its parameters."""
    parameters = read_json(results / arm / f"seed{grid.seeds_of(arm)[0]}" / PARAMETERS)
    stages = [("pretrain", "shard")]
    if grid.goal_of(arm) != Goal.EVALUATE_PRETRAIN:
        stages.append(("sft", "sft_shard"))
    return sum(
        parameters[stage]["schedule"]["num_steps"]
        * parameters[stage]["global_batch_size"]
        * parameters[shard]["packing"]["sequence_length"]
        for stage, shard in stages
    )


def _mean_scores(
    grid: GridConfig, arm: str, results: Path
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean over seeds of every task's value, by trained model, task and shots."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in grid.seeds_of(arm):
        for model, tasks in task_values(results / arm / f"seed{seed}").items():
            for task, values in tasks.items():
                for shots, value in values.items():
                    entry = found.setdefault(model, {}).setdefault(task, {})
                    entry.setdefault(shots, []).append(value)
    return {
        model: {
            task: {shots: round(float(np.mean(values)), 4) for shots, values in entry.items()}
            for task, entry in tasks.items()
        }
        for model, tasks in found.items()
    }


def _at(parameters: Mapping[str, Any], path: str) -> Any:
    value: Any = parameters
    for part in path.split("."):
        value = value[part]
    return value
