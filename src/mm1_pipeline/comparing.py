"""Finds the predictions of two runs, and compares them: what `kedro mm1 compare` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_rerun.artifacts import current, versions
from kedro_rerun.history import History

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mm1_pipeline.evaluation.comparison import TaskComparison

PREDICTIONS = "07_model_output/predictions"
RECORDS = "03_primary/evaluation_records"
CURRENT = "CURRENT"


class ComparisonError(ValueError):
    """Two runs that cannot be found or compared."""


@dataclass(frozen=True)
class RunComparison:
    """Two runs with what differs.

    Attributes:
        names: of both, as a reader knows them.
        directories: artifacts of predictions.
        records_dir: records of the environment, for images; None outside of one.
        tasks: a task and number of shots each.
    """

    names: tuple[str, str]
    directories: tuple[Path, Path]
    records_dir: Path | None
    tasks: list[TaskComparison]


def compare_runs(
    run_a: str, run_b: str, model: str | None, other_model: str | None, data_root: Path | None
) -> RunComparison:
    """Compares the predictions of two runs, or of two models of one run.

    Args:
        run_a: A folder, the number of a past run, `CURRENT`, or the beginning of a fingerprint.
        run_b: Likewise.
        model: Of the first run; may be left out where both have just one model in common.
        other_model: Of the second run; as `model` if left out.
        data_root: Where all but folders are looked up; None allows folders only.

    Raises:
        ComparisonError: A run or model is not there, or they have nothing in common.
    """
    from mm1_pipeline.evaluation.comparison import compare_predictions

    directories = (_find(run_a, data_root), _find(run_b, data_root))
    models = _choose_models(directories, model, other_model)
    try:
        tasks = compare_predictions(directories[0] / models[0], directories[1] / models[1])
    except ValueError as error:
        raise ComparisonError(str(error)) from error
    names = tuple(
        name if directories[0] == directories[1] else f"{_short(run)} {name}"
        for run, name in zip((run_a, run_b), models, strict=True)
    )
    if names[0] == names[1]:
        names = (f"A: {names[0]}", f"B: {names[1]}")
    root = data_root or _root_of(directories[1])
    records = current(root / RECORDS) if root is not None else None
    return RunComparison(
        (names[0], names[1]), directories, None if records is None else records.path, tasks
    )


def page(found: RunComparison) -> str:
    """The comparison as a self-contained page."""
    from mm1_pipeline.reporting.comparison import render_comparison

    return render_comparison(found.tasks, found.names, found.directories, found.records_dir)


def table(found: RunComparison) -> RenderableType:
    """The comparison for a terminal."""
    from mm1_pipeline.reporting.comparison import comparison_table

    return comparison_table(found.tasks, found.names)


def data(found: RunComparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    from mm1_pipeline.reporting.comparison import as_data

    return {"first": found.names[0], "second": found.names[1], "tasks": as_data(found.tasks)}


def _find(run: str, data_root: Path | None) -> Path:
    """The artifact of predictions that a run's name means."""
    path = Path(run)
    if path.is_dir():
        artifact = current(path / PREDICTIONS) or current(path)
        return path if artifact is None else artifact.path
    if data_root is not None:
        if (numbered := _of_past_run(run, data_root)) is not None:
            return numbered
        root = data_root / PREDICTIONS
        found = [version for version in versions(root) if version.path.name.startswith(run)]
        if run == CURRENT and (artifact := current(root)):
            found = [artifact]
        if len(found) == 1:
            return found[0].path
        kept = ", ".join(version.path.name for version in versions(root)) or "none"
        raise ComparisonError(
            f"Found {len(found)} versions of predictions for {run!r}; it must be a folder, a "
            f"number that `kedro mm1 runs` tells, {CURRENT}, or the beginning of one of: {kept}."
        )
    raise ComparisonError(f"Found no folder {run}; expected one with predictions.")


def _of_past_run(run: str, data_root: Path) -> Path | None:
    """The predictions that a run made or found fresh, by its number; None for another name."""
    past = {str(known.number): known for known in History(data_root).runs()}.get(run)
    if past is None:
        return None
    names = [name for name in past.versions if name.rpartition("_")[2] == "predictions"]
    if not names:
        raise ComparisonError(f"Found no predictions of run {run}; it evaluated no model.")
    path = data_root / past.versions[min(names, key=len)]
    if not path.is_dir():
        raise ComparisonError(
            f"Found the predictions of run {run} removed ({path}), as `kedro mm1 gc` does. Run "
            "with its parameters again: `kedro mm1 runs` tells what was changed."
        )
    return path


def _choose_models(
    directories: tuple[Path, Path], model: str | None, other_model: str | None
) -> tuple[str, str]:
    from mm1_pipeline.evaluation.comparison import model_folders

    have = [model_folders(directory) for directory in directories]
    if model is None:
        common = [
            name for name in have[0] if name in have[1] and ":" not in name and name != "frequent"
        ]
        if len(common) != 1:
            raise ComparisonError(
                f"Found the models {list(have[0])} and {list(have[1])}; name one with --model, and "
                "with --other-model if the second run's has another name."
            )
        model = common[0]
    chosen = (model, other_model or model)
    for name, names, directory in zip(chosen, have, directories, strict=True):
        if name not in names:
            raise ComparisonError(
                f"Found no model {name!r} in {directory}; it has {', '.join(names) or 'none'}."
            )
    return chosen


def _root_of(directory: Path) -> Path | None:
    """The data folder that a version of predictions lies in."""
    parents = [parent for parent in directory.parents if (parent / PREDICTIONS).is_dir()]
    return parents[0] if parents else None


def _short(run: str) -> str:
    return Path(run).name if Path(run).is_dir() else run
