"""JSON as objects of declared types: records that were written by this package.

Records are of few and plain types. Having a library build validators for them takes longer than
reading them: a twentieth of a command that finds nothing to do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import (
    Any,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

T = TypeVar("T")


class ShapeError(ValueError):
    """JSON that is not of a type."""


def restore(shape: type[T], content: Any) -> T:
    """Builds an object of a declared type from JSON, strictly: no value is converted.

    Args:
        shape: a dataclass or TypedDict whose fields are such, strings, numbers, `None`, `Any`, or
            mappings, tuples and unions of those.
        content: as `json.loads` gives it.

    Raises:
        ShapeError: for a value of another type, and for an unknown or a missing field.
    """
    return _restore(shape, content)


def _restore(shape: Any, value: Any) -> Any:
    if shape is Any:
        return value
    if shape in (str, int, bool, float):
        if type(value) is shape or (shape is float and type(value) is int):
            return value
    elif shape in (None, NoneType):
        if value is None:
            return None
    elif dataclasses.is_dataclass(shape) or is_typeddict(shape):
        return _restore_fields(shape, value)
    elif (origin := get_origin(shape)) in (Union, UnionType):
        for option in get_args(shape):
            try:
                return _restore(option, value)
            except ShapeError:
                continue
    elif origin in (Mapping, dict):
        if isinstance(value, dict):
            of = get_args(shape)[1]
            return {name: _restore(of, item) for name, item in value.items()}
    elif origin is tuple:
        if isinstance(value, list):
            shapes = get_args(shape)
            if shapes[1:] == (...,):
                shapes = shapes[:1] * len(value)
            if len(shapes) == len(value):
                return tuple(map(_restore, shapes, value))
    else:
        raise TypeError(f"Found the type {shape}, expected one that `restore` names.")
    raise ShapeError(f"Found {type(value).__name__}, expected {shape}.")


def _restore_fields(shape: Any, content: Any) -> Any:
    fields, required = _fields(shape)
    if not isinstance(content, dict) or not required <= content.keys() <= fields.keys():
        raise ShapeError(f"Found something without the fields of {shape.__name__}.")
    return shape(**{name: _restore(fields[name], value) for name, value in content.items()})


@cache
def _fields(shape: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of the fields by name, and which must be there."""
    hints = get_type_hints(shape, include_extras=True)
    if is_typeddict(shape):
        required = {name for name, hint in hints.items() if get_origin(hint) is not NotRequired}
        plain = {
            name: hint if name in required else get_args(hint)[0] for name, hint in hints.items()
        }
        return plain, frozenset(required)
    missing = dataclasses.MISSING
    declared = dataclasses.fields(shape)
    required = {
        field.name for field in declared if field.default is missing is field.default_factory
    }
    return {field.name: hints[field.name] for field in declared}, frozenset(required)
