"""Parameter groups without pydantic: in an exported directory, `config._base` is this module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

T = TypeVar("T")

Count = Number = Seed = Workers = Width = Layers = Pixels = int
Share = Positive = Weight = Epsilon = float
MOST = 2**53


@dataclass_transform(frozen_default=True, kw_only_default=True)
def parameters(cls: type[T]) -> type[T]:
    """A frozen dataclass; values come from a config that was checked when it was exported."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def bounds(**limits: float) -> None:
    """What a number may be, which was checked when the config was exported."""
    del limits


def operational(*, default: Any) -> Any:
    """A field that changes no result."""
    return dataclasses.field(default=default)


def input_path(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that names a file."""
    return dataclasses.field(default=default)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A parameter group from nested JSON.

    Args:
        cls: the group.
        values: its fields; enums by value, groups as objects.
    """
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    for option in (hint, *get_args(hint)):
        is_group = isinstance(option, type) and dataclasses.is_dataclass(option)
        if isinstance(value, Mapping) and is_group:
            return build(option, value)
        if isinstance(value, str) and isinstance(option, type) and issubclass(option, Enum):
            return option(value)
    return tuple(value) if isinstance(value, list) else value
