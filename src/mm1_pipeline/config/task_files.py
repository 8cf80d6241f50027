"""Task files: everything that defines a benchmark but the place of its data, as YAML.

The files lie in `config/tasks`, a benchmark each. An entry of `evaluate.tasks` that names one
takes its values and may override any of them; the outcome is an ordinary typed parameter, so a
changed prompt makes exactly the tasks stale that use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).with_name("tasks")
"""The package's own task files."""
TEXT_FOLDER = FOLDER / "text"
"""Those of text-only tasks."""


def task_names(folder: Path = FOLDER) -> list[str]:
    """Names of the package's own task files."""
    return sorted(path.stem for path in folder.glob("*.yml"))


def complete_task(entry: Mapping[str, Any], folder: Path = FOLDER) -> dict[str, Any]:
    """An entry with the values of its task file where it has none of its own.

    Args:
        entry: Has `task`: a name of `task_names()`, or the path of a file that ends in `.yml`.
        folder: Where the names are looked up.

    Raises:
        ValueError: If there is no such file, or it is no mapping.
    """
    return {**read_task_file(str(entry["task"]), folder), **entry}


def read_task_file(task: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The values that a task file gives; for arguments and errors, see `complete_task`."""
    names = task_names(folder)
    own = task.endswith((".yml", ".yaml"))
    path = Path(task) if own else folder / f"{task}.yml"
    if not path.is_file() or not (own or task in names):
        close = difflib.get_close_matches(task, names, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names)}."
        raise ValueError(f"task: found {task!r}, expected a task file; {hint}")
    return dict(_parse(path, path.stat().st_mtime_ns))


@cache
def _parse(path: Path, _changed: int) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"task: found {path}, which holds no mapping of task parameters.")
    return content
