"""What the official files of benchmarks hold, for whoever keeps it out of training.

They are read as evaluation reads them, whole: not only the items that `max_items` would choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from mm1_pipeline.config.evaluation import EvaluateConfig, TaskConfig
from mm1_pipeline.config.text_tasks import TextFormat, TextTaskConfig
from mm1_pipeline.corpus.decontamination import EvaluationItem
from mm1_pipeline.evaluation.formats.base import FormatFiles, RawItem
from mm1_pipeline.evaluation.formats.dispatch import read_items
from mm1_pipeline.evaluation.formats.text import TextItem, read_text_items

T = TypeVar("T", RawItem, TextItem)

_IMAGE_PLACE = re.compile(r"<image \d+>")
_HINT = "Context: "
"""Stands before the hint of ScienceQA, and in no text of the benchmark."""


def asked_files(task: TaskConfig) -> FormatFiles:
    """Where the items lie that a task out of files asks."""
    assert task.files is not None
    return _files(task.files, task.subset, task.image_name, hidden=task.hidden_answers)


def shown_files(task: TaskConfig) -> FormatFiles | None:
    """Where the examples of a task out of files lie; None where they are items that it asks."""
    if task.shot_files is None and task.shot_subset is None:
        return None
    assert task.files is not None
    subset = task.subset if task.shot_subset is None else task.shot_subset
    if task.shot_files is None:
        return _files(task.files, subset, task.image_name)
    return _files(task.shot_files, subset, task.shot_image_name or task.image_name)


def read_benchmarks(config: EvaluateConfig, names: Iterable[str]) -> Iterator[EvaluationItem]:
    """All that the files of some tasks hold: what is asked of all of them, then what is shown.

    Args:
        config: The tasks; of each only what its data is.
        names: Which of the tasks, those without images among them.

    Raises:
        ValueError: A file is missing, damaged or not in its format; it begins with the parameter.
    """
    wanted = set(names)
    tasks = {name: task for name, task in config.tasks.items() if name in wanted and task.format}
    texts = {name: task for name, task in config.text_tasks.items() if name in wanted}
    for is_shown in (False, True):
        for name, task in tasks.items():
            yield from read_benchmark(name, task, is_shown=is_shown)
        for name, task in texts.items():
            yield from read_text_benchmark(name, task, is_shown=is_shown)


def read_benchmark(name: str, task: TaskConfig, *, is_shown: bool) -> Iterator[EvaluationItem]:
    """One task's part of `read_benchmarks`."""
    files = shown_files(task) if is_shown else asked_files(task)
    if files is None:
        return
    assert task.format is not None
    parameter = _parameter("tasks", name, is_shown and task.shot_files is not None)
    for item in _naming(parameter, read_items(task.format, files)):
        if item.is_asked:
            yield EvaluationItem(name, item.key, item.images, _texts(item), is_shown, item.failure)


def read_text_benchmark(
    name: str, task: TextTaskConfig, *, is_shown: bool
) -> Iterator[EvaluationItem]:
    """One text task's part of `read_benchmarks`."""
    files = task.shot_files if is_shown else task.files
    if files is None:
        return
    parameter = _parameter("text_tasks", name, is_shown)
    for item in _naming(parameter, _text_items(task.format, files)):
        yield EvaluationItem(name, item.key, (), item.texts(), is_shown, item.failure)


def _text_items(kind: TextFormat, files: Mapping[str, str]) -> Iterator[TextItem]:
    yield from read_text_items(kind, {role: Path(path) for role, path in files.items()})


def _parameter(group: str, name: str, is_shown: bool) -> str:
    return f"evaluate.{group}.{name}.{'shot_files' if is_shown else 'files'}"


def _naming(parameter: str, items: Iterator[T]) -> Iterator[T]:
    """The items; what is wrong with their files is said of the parameter that names them."""
    try:
        yield from items
    except ValueError as error:
        raise ValueError(f"{parameter}: {error}") from error


def _texts(item: RawItem) -> tuple[str, ...]:
    """Whatever somebody wrote: letters of options are left out, and marks of an image's place."""
    question = _IMAGE_PLACE.sub(" ", item.question or "")
    lines = [line.removeprefix(_HINT) for line in question.split("\n")]
    whole = [question] if len(lines) > 1 else []
    answers = () if item.options else item.references
    context = [item.facts["context"]] if "context" in item.facts else []
    found = (*whole, *lines, *item.options, *answers, *context)
    return tuple(text for text in found if text.strip())


def _files(
    paths: Mapping[str, str], subset: str, image_name: str, *, hidden: bool = False
) -> FormatFiles:
    by_role = {role: Path(path) for role, path in paths.items()}
    return FormatFiles(by_role, subset, image_name, hidden)
