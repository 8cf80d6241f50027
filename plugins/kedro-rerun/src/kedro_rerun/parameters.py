"""Typed parameters as flat paths, and what changed between two sets of them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple

from kedro_rerun.errors import StalenessError, without_secrets
from kedro_rerun.files import canonical_json, hash_json
from kedro_rerun.inputs import Selection
from kedro_rerun.meaning import OPERATIONAL

INPUT_PATH = "input_path"
"""Metadata key of a field that names a file or folder whose content counts, not its place. Its
value is True, or a function that tells from the group and the path which files count."""
ORDER = "(order)"
_Scalar = None | bool | int | float | str


class FlatParameters(NamedTuple):
    """Parameters by dotted path."""

    values: dict[str, str]
    """Canonical JSON of each value."""
    input_paths: dict[str, str]
    """Files and folders that the parameters name as inputs."""
    selections: dict[str, Selection]
    """What counts of each of them, where the field says so."""

    @classmethod
    def empty(cls) -> FlatParameters:
        """No parameters."""
        return cls({}, {}, {})

    def inputs(self) -> dict[str, Selection]:
        """What counts of each input path; all of it where the field says nothing."""
        return {
            path: self.selections.get(path, Selection(place))
            for path, place in self.input_paths.items()
        }


class Change(NamedTuple):
    """One difference between two sets of flat values; None stands for absent."""

    path: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.path}: {self.before or '(absent)'} -> {self.after or '(absent)'}"


def flatten_parameters(value: Any, path: str) -> FlatParameters:
    """Flattens a parameter group.

    Dataclass fields (and attrs or pydantic ones) whose metadata says `operational` are left
    out. Fields marked `input_path` become input paths. The order of a mapping's keys counts,
    as it decides for instance the order of sources.

    Args:
        value: what a node gets: a typed group, or plain YAML values.
        path: its name, for instance `params:sft`.

    Returns:
        Values and input paths, by dotted path.

    Raises:
        StalenessError: for a value that has no stable text.
    """
    flat = FlatParameters.empty()
    _flatten(value, path, flat)
    return flat


def diff(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Lists what differs, in the order of the paths.

    Args:
        before: earlier values by path.
        after: present values by path.

    Returns:
        One change for each path whose value differs.
    """
    changes = [
        Change(path, before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    return [change for change in changes if not _is_order_of_changed(change, changes)]


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted path, as `--params` takes them."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe_value(value: Any) -> str:
    """Stable text of a value bound to a function, for instance by `functools.partial`.

    Args:
        value: anything `flatten_parameters` takes.

    Raises:
        StalenessError: for a value that has no stable text.
    """
    flat = flatten_parameters(value, "value")
    if flat.values.keys() == {"value"}:
        return flat.values["value"]
    return hash_json([flat.values, flat.input_paths])[:20]


def _flatten(value: Any, path: str, flat: FlatParameters) -> None:
    value = _simplify(value)
    fields = _fields_of(value)
    if fields is not None:
        for name, child, metadata in fields:
            if metadata.get(OPERATIONAL):
                continue
            reads: Any = metadata.get(INPUT_PATH)
            if reads and child is not None:
                for place_path, place in _places(child, f"{path}.{name}"):
                    flat.input_paths[place_path] = place
                    if reads is not True:
                        flat.selections[place_path] = Selection(*reads(value, place))
            else:
                _flatten(child, f"{path}.{name}", flat)
    elif isinstance(value, Mapping):
        flat.values[f"{path}.{ORDER}"] = canonical_json([str(key) for key in value])
        for key, child in value.items():
            _flatten(child, f"{path}.{key}", flat)
    elif isinstance(value, list | tuple):
        _flatten_sequence(value, path, flat)
    elif isinstance(value, _Scalar):
        if isinstance(value, str) and "://" in value:
            value = without_secrets(value)  # Records and messages hold these values.
        flat.values[path] = repr(value) if isinstance(value, float) else canonical_json(value)
    else:
        raise StalenessError(
            f"{path}: found a value of the type {type(value).__name__}, expected a dataclass, "
            "mapping, list, string, number, Enum or path. Parameters need a stable text to be "
            "compared with those of the last run."
        )


def _flatten_sequence(value: list | tuple, path: str, flat: FlatParameters) -> None:
    simple = [_simplify(item) for item in value]
    simple = [
        without_secrets(item) if isinstance(item, str) and "://" in item else item
        for item in simple
    ]
    if all(isinstance(item, _Scalar) for item in simple):
        flat.values[path] = canonical_json(simple)
        return
    flat.values[f"{path}.{ORDER}"] = str(len(simple))
    for index, item in enumerate(simple):
        _flatten(item, f"{path}[{index}]", flat)


def _places(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Each of the files and folders that a field names, by its dotted path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _places(child, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _places(child, f"{path}[{index}]")
    else:
        yield path, str(value)


def _simplify(value: Any) -> Any:
    match value:
        case Enum():
            return _simplify(value.value)
        case PurePath():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case set() | frozenset():
            return sorted((_simplify(item) for item in value), key=repr)
        case _ if hasattr(value, "item") and hasattr(value, "dtype") and not value.shape:
            return value.item()  # A NumPy scalar.
    return value


def _fields_of(value: Any) -> Iterator[tuple[str, Any, Mapping[Any, Any]]] | None:
    """Name, value and metadata of each field; None for a value without declared fields."""
    cls = type(value)
    if dataclasses.is_dataclass(cls):
        declared = [(field.name, field.metadata) for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        declared = [(field.name, field.metadata) for field in cls.__attrs_attrs__]
    elif hasattr(cls, "model_fields"):
        declared = [
            (name, extra if isinstance(extra := field.json_schema_extra, Mapping) else {})
            for name, field in cls.model_fields.items()
        ]
    else:
        return None
    return ((name, getattr(value, name), metadata) for name, metadata in declared)


def _is_order_of_changed(change: Change, changes: list[Change]) -> bool:
    """Whether a change of order only repeats that keys came or went."""
    prefix = change.path.removesuffix(ORDER)
    if prefix == change.path:
        return False
    stem = prefix.removesuffix(".")
    return any(
        other is not change
        and other.path.startswith((prefix, f"{stem}["))
        and (other.before is None or other.after is None)
        for other in changes
    )
