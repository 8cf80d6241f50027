"""From a format to its reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats.base import FormatFiles, RawItem

_MAX_FOUND = 300
"""Characters of a library's error that are passed on."""


def reader_of(kind: TaskFormat) -> Callable[[FormatFiles], Iterator[RawItem]]:
    """The reader of a format, out of the module that `config.task_formats` names."""
    # Written out, so that staleness, which imports nothing, sees what may be meant.
    module = import_module(f"mm1_pipeline.evaluation.formats.{kind.layout.reader}")
    return module.READERS[kind]


def read_items(kind: TaskFormat, files: FormatFiles) -> Iterator[RawItem]:
    """Items of a benchmark, in the order of its files.

    Args:
        kind: How the files are written.
        files: Where they lie.

    Raises:
        ValueError: If a file is missing, damaged, or not in the format at all; a benchmark is
            asked whole or not at all.
    """
    try:
        yield from reader_of(kind)(files)
    except MemoryError:
        raise
    except Exception as error:
        places = [str(path) for path in files.paths.values()]
        if isinstance(error, ValueError) and any(place in str(error) for place in places):
            raise
        # Of damaged files libraries raise nearly everything: OSError, TypeError, RecursionError.
        found = " ".join(str(error).split())[:_MAX_FOUND]
        raise ValueError(
            f"Found no readable files of {kind.value} in {', '.join(places)} "
            f"({type(error).__name__}: {found}); expected the official format. Fetch them anew."
        ) from error
