"""Checks of grids: every arm is checked as the run that it is, and every lesson counts scores that
its arms give.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from mm1_pipeline.config.lab import AblateConfig, Goal, GridConfig, LessonConfig, LrLawConfig
from mm1_pipeline.config.stages import SFTStart
from mm1_pipeline.lab.grid import ArmRun, learning_rate_grid, resolve_arms
from mm1_pipeline.preflight.run import Check, Run, unknown

_MODELS = {
    Goal.EVALUATE: ("pretrain", "upcycle", "sft"),
    Goal.EVALUATE_SFT: ("sft",),
    Goal.EVALUATE_PRETRAIN: ("pretrain",),
}
"""Models whose scores a goal gives."""


def check_arms(check_run: Callable[[Run], Iterable[str]]) -> Check:
    """Of `run_arms`.

    Args:
        check_run: The checks of an ordinary run.
    """

    def check(run: Run) -> Iterator[str]:
        config: AblateConfig = run.get("ablate")
        arms: dict[str, ArmRun] = {}
        label = "ablate.grid.arms.{arm}".format
        yield from _resolved(config.grid, run, arms, lambda arm, _: label(arm=arm))
        yield from _arm_problems("ablate.grid.arms", arms.values(), run, check_run)
        for name, lesson in config.chosen_lessons.items():
            yield from _lesson(f"ablate.lessons.{name}", lesson, config.grid, arms)

    return check


def check_rates(check_run: Callable[[Run], Iterable[str]]) -> Check:
    """Of `run_rates`; for arguments, see `check_arms`."""

    def check(run: Run) -> Iterator[str]:
        config: LrLawConfig = run.get("lr_law")
        arms: dict[str, ArmRun] = {}

        def label(_: str, path: str) -> str:
            if path == config.rate_path:
                return "lr_law.rate_path"
            return f"lr_law.{'overrides' if path in config.overrides else 'sizes'}"

        yield from _resolved(learning_rate_grid(config), run, arms, label)
        yield from _arm_problems("lr_law.sizes", arms.values(), run, check_run)
        for arm in list(arms.values())[:1]:
            yield from _scores("lr_law.scores", config.scores, config.model, arm)

    return check


def _resolved(
    grid: GridConfig, run: Run, arms: dict[str, ArmRun], label: Callable[[str, str], str]
) -> Iterator[str]:
    """Puts the first run of each arm into `arms`, and tells what cannot be one.

    Values by their paths are tried arm by arm, so that all mistakes are told at once.

    Args:
        grid: Arms and seeds.
        run: The environment's parameters.
        arms: Gets the runs.
        label: The parameter that gives an arm a value, from the arm and the value's path.
    """
    for path in grid.seed_paths:
        if problem := _no_such_path("ablate.grid.seed_paths", path, run):
            yield problem
    told = set()
    for name, overrides in grid.chosen_arms.items():
        problems = [_no_such_path(label(name, path), path, run) for path in overrides]
        if not any(problems):
            one = GridConfig(arms={name: overrides}, seeds=grid.seeds[:1], goal=grid.goal_of(name))
            try:
                arms[name] = resolve_arms(one, run.groups)[0]
            except ValueError as error:
                text = str(error).removeprefix(f"arms.{name}: ")
                problems = [f"{label(name, '')}: {text}"]
        new = [problem for problem in problems if problem and problem not in told]
        yield from new
        told.update(new)


def _no_such_path(label: str, path: str, run: Run) -> str | None:
    """Why a dotted path leads to no parameter; mappings may get new entries."""
    value: Any = run.groups
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
        elif depth == 0:
            names = list(value)
        else:  # An entry of a mapping, or below null: what stands there is checked when built.
            names = None
        if names is not None and part not in names:
            there = ".".join(parts[: depth + 1])
            close = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
            return f"{label}: found {path!r}, but {there!r} is no parameter; {hint}"
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return None


def _arm_problems(
    path: str, arms: Iterable[ArmRun], run: Run, check_run: Callable[[Run], Iterable[str]]
) -> Iterator[str]:
    """What the runs of arms would fail for, each text once, with the first arm that has it."""
    told = set()
    for arm in arms:
        nodes = _nodes(arm.goal, arm.groups["sft"].init_from)
        for text in check_run(Run(nodes, {**run.groups, **arm.groups}, run.known)):
            if text not in told:
                told.add(text)
                yield f"{path}.{arm.arm}: {text}"


@cache
def _nodes(goal: Goal, start: SFTStart) -> frozenset[str]:
    from mm1_pipeline.pipelines.lab_inputs import goal_pipeline

    return frozenset(node.name for node in goal_pipeline(goal, start).nodes)


def _lesson(
    path: str, lesson: LessonConfig, grid: GridConfig, arms: Mapping[str, ArmRun]
) -> Iterator[str]:
    model = lesson.model or grid.model
    sides = (
        (lesson.first, "scores", lesson.scores),
        (lesson.second, "second_scores", lesson.second_scores or lesson.scores),
    )
    for name, field, scores in sides:
        if (arm := arms.get(name)) is None:
            continue
        shown = field if lesson.second_scores else "scores"
        found = list(_side(path, shown, lesson, scores, model, arm))
        yield from found
        if found:  # What the other arm lacks as well would be told twice.
            return


def _side(
    path: str,
    field: str,
    lesson: LessonConfig,
    scores: Mapping[str, tuple[int, ...]],
    model: str,
    arm: ArmRun,
) -> Iterator[str]:
    """What a lesson counts of one of its arms, and the arm does not give."""
    if model not in (scored := _MODELS[arm.goal]):
        yield unknown(f"{path}.model", model, scored, f"models that the arm {arm.arm} scores")
        return
    yield from _scores(f"{path}.{field}", scores, model, arm)
    if lesson.held_out is not None:
        yield from _held_out(f"{path}.held_out", lesson.held_out, model, arm)


def _scores(
    path: str, scores: Mapping[str, tuple[int, ...]], model: str, arm: ArmRun
) -> Iterator[str]:
    """Tasks and shots that are counted are asked."""
    evaluate = arm.groups["evaluate"]
    tasks = {
        name: task.shots for name, task in evaluate.tasks.items() if task.is_asked_of(model)
    } | {name: task.shots for name, task in evaluate.text_tasks.items()}
    for task, shots in scores.items():
        if task not in tasks:
            yield unknown(path, task, list(tasks), f"tasks that {model} is asked")
        for number in shots:
            if task in tasks and number not in tasks[task]:
                asked = ", ".join(map(str, tasks[task]))
                yield (
                    f"{path}.{task}: found {number} shots, expected one of those that "
                    f"evaluate.tasks.{task}.shots asks in the arm {arm.arm}: {asked}."
                )


def _held_out(path: str, stream: str, model: str, arm: ArmRun) -> Iterator[str]:
    run = Run(_nodes(arm.goal, arm.groups["sft"].init_from), arm.groups)
    known = run.conversation_sources() if model == "sft" else run.pretraining_sources()
    kinds = {kind.value for kind in (known or {}).values()}
    if known is not None and stream not in kinds:
        yield unknown(path, stream, kinds, "kinds of records that training holds out")
