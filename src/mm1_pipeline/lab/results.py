"""What is kept of a run: enough to judge every lesson, and small enough to commit.

    evaluation.json             scores by task and shots
    held_out_loss.json          losses by stream
    scores.json.gz              score of every item, by model, task and shots
    training_<stage>.jsonl      some of the log's rows, without clocks
    parameters.json.gz          everything the run was given

Prompts, answers and images stay with the run's data. The same results give the same bytes. A
grid's store keeps the same in three tables (`lab.store`).
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.config.lab import Goal
from mm1_pipeline.evaluation.scoring.baselines import BLIND_SUFFIX, FREQUENT
from mm1_pipeline.ground import files

EVALUATION, HELD_OUT_LOSS = "evaluation.json", "held_out_loss.json"
SCORES, PARAMETERS = "scores.json.gz", "parameters.json.gz"

_PREFIXES = {
    Goal.EVALUATE: "",
    Goal.EVALUATE_SFT: "sft_",
    Goal.EVALUATE_PRETRAIN: "pretrain_",
}
"""Before the names of a goal's evaluation reports."""

_STAGES = {
    Goal.EVALUATE: ("pretrain", "sft"),
    Goal.EVALUATE_SFT: ("pretrain", "sft"),
    Goal.EVALUATE_PRETRAIN: ("pretrain",),
}
"""Whose training logs a goal leaves."""

_MAX_ROWS = 100


def collect_results(
    goal: Goal, parameters: Mapping[str, Any], data_root: Path, target: Path
) -> None:
    """Copies what is kept of a run that has just ended.

    Args:
        goal: What it ran.
        parameters: What it was given.
        data_root: Where its reports and predictions lie.
        target: The folder, which is there.
    """
    reports, prefix = data_root / "08_reporting", _PREFIXES[goal]
    for name in (EVALUATION, HELD_OUT_LOSS):
        shutil.copyfile(reports / f"{prefix}{name}", target / name)
    for stage in _STAGES[goal]:
        name = f"training_{stage}.jsonl"
        rows = [json.loads(row) for row in (reports / name).read_text("utf-8").splitlines()]
        _write_rows(target / name, _thinned(rows))
    predictions = data_root / "07_model_output" / f"{prefix}predictions"
    version = (predictions / "CURRENT").read_text(encoding="utf-8").strip()
    files.write_json(target / SCORES, _read_predictions(predictions / version))
    files.write_json(target / PARAMETERS, parameters)


def read_json(path: Path) -> Any:
    """Reads a file of a run's results.

    Raises:
        ValueError: The file is missing or is no JSON.
    """
    try:
        return files.read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; expected a run's results. Remove the run's folder to have it run again."
        ) from error


def item_scores(
    folder: Path, model: str, tasks: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int, str], float]:
    """Score of each item.

    Args:
        folder: A run's results.
        model: As the evaluation names it.
        tasks: The numbers of shots that count, by task.

    Returns:
        Scores by task, shots and key, in the order they were asked.

    Raises:
        ValueError: The run has no such scores.
    """
    found = read_json(folder / SCORES)
    if model not in found:
        raise ValueError(
            f"{folder}: found no scores of {model!r}, only of {', '.join(found)}; the arm's goal "
            "must score the model that a lesson names."
        )
    scores = {}
    for task, shots in tasks.items():
        for num_shots in shots:
            entry = found[model].get(_asked(task, num_shots))
            if entry is None:
                raise ValueError(
                    f"{folder}: found no scores of {task!r} with {num_shots} shots for {model}, "
                    "which a lesson counts and the environment's `evaluate` must ask; there are: "
                    f"{', '.join(found[model])}."
                )
            for key, score in zip(entry["keys"], entry["scores"], strict=True):
                scores[task, num_shots, key] = float(score)
    return scores


def held_out_losses(folder: Path, model: str) -> dict[str, float]:
    """Held-out loss of a model by stream."""
    models = read_json(folder / HELD_OUT_LOSS)["models"]
    if model not in models:
        raise ValueError(f"{folder}: found no held-out loss of {model!r}: {', '.join(models)}.")
    return {name: float(stream["loss"]) for name, stream in models[model]["streams"].items()}


def task_values(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Value of every task, by trained model, task and number of shots."""
    return _trained_values(read_json(folder / EVALUATION))


def headlines(places: Mapping[str, Path]) -> dict[str, float]:
    """Scores that `kedro mm1 runs` remembers a run by.

    Args:
        places: file of each report of the run, by dataset.

    Returns:
        First of each trained model the mean over its tasks and numbers of shots, then the mean of
        its held-out losses over the streams (both unweighted), then the value of every task.
    """
    means: dict[str, float] = {}
    losses: dict[str, float] = {}
    values: dict[str, float] = {}
    for name, path in places.items():
        if name.endswith("held_out_loss"):
            for model, found in read_json(path)["models"].items():
                of_streams = [float(stream["loss"]) for stream in found["streams"].values()]
                if of_streams and BLIND_SUFFIX not in model:
                    losses[f"{model} loss"] = statistics.fmean(of_streams)
        elif name.rpartition("_")[2] == "evaluation":
            for model, tasks in _trained_values(read_json(path)).items():
                of_tasks = {
                    f"{model} {task} {shots}-shot": value
                    for task, found in tasks.items()
                    for shots, value in found.items()
                }
                values |= of_tasks
                if of_tasks:
                    means[f"{model} score"] = statistics.fmean(of_tasks.values())
    return means | losses | values


def _trained_values(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        model: {
            task: {shots: float(score["value"]) for shots, score in entry["shots"].items()}
            for task, entry in found["tasks"].items()
        }
        for model, found in evaluation["models"].items()
        if model != FREQUENT and BLIND_SUFFIX not in model
    }


def _asked(task: str, num_shots: int) -> str:
    return f"{task}_{num_shots}shot"


def _read_predictions(folder: Path) -> dict[str, dict[str, dict[str, list[Any]]]]:
    found: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.setdefault(path.parent.name, {})[path.stem] = {
            "keys": [row["key"] for row in rows],
            "scores": [float(row["score"]) for row in rows],
        }
    return found


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most about a hundred rows, evenly, with the last; clocks are left out."""
    stride = -(-len(rows) // _MAX_ROWS)
    kept = [row for number, row in enumerate(rows) if (len(rows) - 1 - number) % stride == 0]
    return [{name: value for name, value in row.items() if name != "timing"} for row in kept]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
