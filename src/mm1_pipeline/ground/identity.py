"""What a piece of work is made from: work that was interrupted goes on only with the same.

A parameter counts unless its field is marked otherwise: there is no list of those that do not.
`staleness.parameters` reads the same marks, to tell what a stage as a whole depends on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from mm1_pipeline.ground.files import hash_json

OPERATIONAL = "operational"
"""Metadata key of a field that cannot change results: a number of workers, a device."""

INPUT_PATH = "input_path"
"""Metadata key of a field that names a file or folder: what lies there counts, not where."""

EXTENT = "extent"
"""Metadata key of a field that says how much is made, or where: finished parts stay good."""


def result_values(value: Any) -> Any:
    """What of parameters can change a finished part of a result, as JSON values.

    Fields that are marked are left out. Whoever reads inputs adds what they hold.

    Args:
        value: A parameter group, or anything of groups, mappings, sequences and plain values.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f.name, f.metadata, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {
            name: result_values(child)
            for name, metadata, child in fields
            if not metadata.get(OPERATIONAL)
            and not metadata.get(EXTENT)
            # Whether there is an input at all counts.
            and not (metadata.get(INPUT_PATH) and child is not None)
        }
    if isinstance(value, Mapping):
        return {str(key): result_values(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [result_values(child) for child in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def identity(**content: Any) -> str:
    """Digest of what a part of a result is made from.

    Args:
        content: By name: parameter groups, and what the inputs hold.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: Something has no JSON.
    """
    return hash_json(result_values(content))


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Tells `dotted.path: found -> wanted` for every leaf of two nested mappings that differs."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(found.keys() | wanted.keys()):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{path}: {found!r} -> {wanted!r}"
