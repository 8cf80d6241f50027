"""Runs the arms of a grid, each as an ordinary run of the project with other parameters.

All arms share one data root. What two arms have in common, such as records and shards, is made
once and found again by its fingerprint; so is all of an arm that was finished before, also
after a kill or under another grid. There is no second training path.

An arm's configuration is written out whole, so it can be run by hand as well.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config.lab import Goal, GridConfig, Overrides

logger = logging.getLogger(__name__)

ENVIRONMENT = "arm"

EVALUATION, HELD_OUT_LOSS = "evaluation.json", "held_out_loss.json"
PREDICTIONS, PARAMETERS, TIMING = "predictions", "parameters.json", "timing.json"
"""What a run's results hold, beside the training log."""

_PREFIXES = {Goal.EVALUATE: "", Goal.EVALUATE_PRETRAIN: "pretrain_"}
"""Before the names of a goal's evaluation reports."""

_TRAINING = "training_pretrain.jsonl"
_LAST_LINES = 25


@dataclass(frozen=True)
class Place:
    """Where a grid runs.

    Attributes:
        project: Root of the Kedro project, with `conf`.
        data_root: Of all arms; kept between grids.
        work_dir: Progress of this grid.
        output_dir: Gets `<arm>/seed<seed>/` with the reports and predictions of each run.
    """

    project: Path
    data_root: Path
    work_dir: Path
    output_dir: Path


def place_of(root: Path, work_dir: Path, output_dir: Path) -> Place:
    """The place of a grid that the project in the current folder runs.

    Args:
        root: Of the grid's artifact; the arms' data lies in `arms_data` beside it.
        work_dir: See `Place`.
        output_dir: See `Place`.
    """
    return Place(Path.cwd(), root.parent / "arms_data", work_dir, output_dir)


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed.

    Attributes:
        arm: Its name.
        seed: Its seed.
        parameters: Everything the run is given, by group, as JSON values.
    """

    arm: str
    seed: int
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """Folder of the run's results."""
        return f"{self.arm}/seed{self.seed}"


def resolve_arms(config: GridConfig, parameters: Mapping[str, Any]) -> list[ArmRun]:
    """Applies each arm's overrides and each seed, and checks what comes out.

    Args:
        config: Arms and seeds.
        parameters: The environment's, by group; typed groups are checked again.

    Returns:
        Seed by seed, so that every arm has a first result soon.

    Raises:
        ValueError: An override's path does not exist, or a value is not allowed.
    """
    groups = {name: value for name, value in parameters.items() if dataclasses.is_dataclass(value)}
    raw = {
        name: TypeAdapter(type(value)).dump_python(value, mode="json")
        for name, value in groups.items()
    }
    runs = []
    for seed in config.chosen_seeds:
        for arm, overrides in config.chosen_arms.items():
            changed = apply_overrides(raw, {**overrides, **dict.fromkeys(config.seed_paths, seed)})
            for name, group in groups.items():
                _check_group(arm, name, type(group), changed[name])
            runs.append(ArmRun(arm, seed, changed))
    return runs


def apply_overrides(parameters: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Parameters with some values replaced.

    Args:
        parameters: JSON values, nested.
        overrides: By dotted path. Only the last part of a path may be new.

    Raises:
        ValueError: A path leads nowhere.
    """
    result = copy.deepcopy(dict(parameters))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place: Any = result
        for depth, part in enumerate(parents):
            if not isinstance(place, dict) or not isinstance(place.get(part), dict):
                known = ", ".join(place) if isinstance(place, dict) else "no further parameters"
                raise ValueError(
                    f"overrides: found {path!r}, but {'.'.join(parents[: depth + 1])!r} is no "
                    f"group of parameters; there are: {known}."
                )
            place = place[part]
        if not parents:
            raise ValueError(f"overrides: found {path!r}, expected a path such as `pretrain.seed`.")
        place[last] = copy.deepcopy(value)
    return result


def run_grid(config: GridConfig, runs: Sequence[ArmRun], place: Place) -> dict[str, Any]:
    """Runs every arm that this grid has no result of yet.

    Args:
        config: What each arm runs.
        runs: From `resolve_arms`.
        place: Where everything lies.

    Returns:
        {"arms": {ARM: {SEED: {"seconds"}}}}. A run whose parts were all there takes seconds.

    Raises:
        RuntimeError: A run failed; its last lines are in the message, the rest in its log.
    """
    timings: dict[str, dict[str, Any]] = {}
    done = [run for run in runs if _result(place, run).is_dir()]
    logger.info("%d of %d runs are there from before.", len(done), len(runs))
    begun, num_run = time.monotonic(), 0
    for number, run in enumerate(runs, start=1):
        result = _result(place, run)
        if not result.is_dir():
            _run(config, run, place)
            num_run += 1
            per_run = (time.monotonic() - begun) / num_run
            left = sum(not _result(place, other).is_dir() for other in runs[number:])
            logger.info(
                "%s: run %d of %d done, about %.0f s a run, ETA %.0f min",
                run.name,
                number,
                len(runs),
                per_run,
                left * per_run / 60,
            )
        target = place.output_dir / run.name
        shutil.copytree(result, target, dirs_exist_ok=True)
        timings.setdefault(run.arm, {})[str(run.seed)] = json.loads(
            (target / TIMING).read_text(encoding="utf-8")
        )
        (target / TIMING).unlink()
    return {"arms": timings}


def _check_group(arm: str, name: str, cls: type, value: Any) -> None:
    try:
        TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (name, *first["loc"]))
        raise ValueError(f"arms.{arm}: {path}: {first['msg']}.") from None


def _result(place: Place, run: ArmRun) -> Path:
    return place.work_dir / "results" / run.name


def _run(config: GridConfig, run: ArmRun, place: Place) -> None:
    conf = place.work_dir / "conf" / run.name
    write_conf(run, place, conf)
    log = place.work_dir / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "kedro", "run", f"--pipeline={config.goal.value}"),
        *(f"--env={ENVIRONMENT}", f"--conf-source={conf}", "--params=allow_expensive=true"),
    ]
    begun = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.run(  # noqa: S603 - our own command, without a shell
            command,
            cwd=place.project,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
            check=False,
        )
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        raise RuntimeError(
            f"{run.name} ended with {process.returncode}; the grid goes on from here when it is "
            f"run again. The whole log: {log}. Its last lines:\n" + "\n".join(lines)
        )
    _collect(config.goal, run, place, time.monotonic() - begun)


def _collect(goal: Goal, run: ArmRun, place: Place, seconds: float) -> None:
    """Copies a run's reports and predictions to where no later arm replaces them."""
    result = _result(place, run)
    fresh = result.with_name(f".{result.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    reports, prefix = place.data_root / "08_reporting", _PREFIXES[goal]
    for name in (EVALUATION, HELD_OUT_LOSS):
        shutil.copyfile(reports / f"{prefix}{name}", fresh / name)
    rows = (reports / _TRAINING).read_text(encoding="utf-8").splitlines()
    untimed = [{k: v for k, v in json.loads(row).items() if k != "timing"} for row in rows]
    (fresh / _TRAINING).write_text(
        "".join(json.dumps(row) + "\n" for row in untimed), encoding="utf-8"
    )
    predictions = place.data_root / "07_model_output" / f"{prefix}{PREDICTIONS}"
    version = (predictions / "CURRENT").read_text(encoding="utf-8").strip()
    shutil.copytree(predictions / version, fresh / PREDICTIONS)
    (fresh / PARAMETERS).write_text(json.dumps(run.parameters, indent=2) + "\n", encoding="utf-8")
    (fresh / TIMING).write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")
    fresh.rename(result)


def write_conf(run: ArmRun, place: Place, conf: Path) -> None:
    """Writes a run's whole configuration: the project's, with the arm's groups in place of base's.

    Args:
        run: Gives the groups.
        place: Gives the project's `conf` and the arms' data root.
        conf: The folder, which is replaced.
    """
    shutil.rmtree(conf, ignore_errors=True)
    base, environment = conf / "base", conf / ENVIRONMENT
    base.mkdir(parents=True)
    environment.mkdir()
    source = place.project / "conf"
    for path in sorted((source / "base").glob("*.yml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if path.name.startswith("parameters"):
            content = {name: group for name, group in content.items() if name not in run.parameters}
        _write_yaml(base / path.name, content)
    for path in sorted(source.glob("*.yml")):
        shutil.copyfile(path, conf / path.name)
    _write_yaml(base / "parameters_arm.yml", run.parameters)
    _write_yaml(environment / "globals.yml", {"data_root": str(place.data_root.resolve())})


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
