"""The one decorator behind every parameter class."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from mm1_pipeline.ground.identity import EXTENT, INPUT_PATH, OPERATIONAL

T = TypeVar("T")


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in value.items() if entry is not None}


NULL_REMOVES = BeforeValidator(_without_nulls)
"""Metadata of a mapping whose entries an environment may take out: environments are merged into
`base` entry by entry, so one that wants other sources sets those of `base` to null."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_LONGEST_NAME = 100


def _plain_name(name: str) -> str:
    if len(name) > _LONGEST_NAME or not _PLAIN_NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"found the name {name!r}, expected at most {_LONGEST_NAME} letters, digits, `_`, `-` "
            "and single dots, the first a letter or digit: files and folders are called by it."
        )
    return name


Name = Annotated[str, AfterValidator(_plain_name)]
"""Key of a mapping whose entries files and folders are called by: none leads elsewhere."""


_NO_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.(txt|md|rst|html?|pdf|cff|bib))?"
    r"|thumbs\.db|ehthumbs\.db|desktop\.ini|.*\.(md|rst)",
    re.IGNORECASE,
)
"""Names that people and file managers give to what is beside data."""


def operational(*, default: Any) -> Any:
    """Declares a field that changes speed, cost or logging, but no result.

    Staleness ignores such fields: a new number of workers reruns nothing.
    """
    return dataclasses.field(default=default, metadata={OPERATIONAL: True})


def extent(*, default: Any = dataclasses.MISSING) -> Any:
    """Declares a field that says how much is made, or where, but not what a part of it holds.

    A stage that was interrupted goes on with another; one that is finished is run again, for it
    would make more or less.
    """
    return dataclasses.field(default=default, metadata={EXTENT: True})


class Selection(NamedTuple):
    """Which files count of those that a parameter names."""

    place: str
    """Folder, or file."""
    counts: Callable[[str], bool]
    """Whether a file in the folder does, by its relative name."""
    follows_out: bool = True
    """Whether links that lead out of the folder are followed."""


def is_data(name: str) -> bool:
    """Whether a file in a folder of data is any: not hidden, no README, nothing a system left.

    Args:
        name: of the file, relative to the folder.
    """
    *_, base = parts = name.split("/")
    return not any(part.startswith(".") for part in parts) and not _NO_DATA.fullmatch(base)


def _all_data(_group: Any, place: str) -> Selection:
    return Selection(place, is_data)


def input_path(
    *, default: Any = dataclasses.MISSING, reads: Callable[[Any, str], Selection] = _all_data
) -> Any:
    """Declares a field that names a file or folder which is read.

    Staleness counts what lies there, not where it lies: moving data reruns nothing,
    changing it does.

    Args:
        default: value of the field.
        reads: tells from the group and the path which files count.
    """
    return dataclasses.field(default=default, metadata={INPUT_PATH: reads})


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(dataclasses.field, operational, input_path, extent),
)
def parameters(cls: type[T]) -> type[T]:
    """Turns a class into a frozen parameter group that refuses unknown fields.

    Nested groups are built from nested YAML, and an error names the dotted path of the
    field, so a misspelt parameter stops a run before any node starts.
    """
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(cls)  # pyright: ignore[reportReturnType]
