"""What a node's function is: names to follow in source files, and the values bound to it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kedro_rerun.files import hash_text
from kedro_rerun.parameters import describe_value

_INTERACTIVE = "__main__"


@dataclass
class FunctionView:
    """A function in terms of source files."""

    name: str
    entries: list[tuple[str, str]] = field(default_factory=list)
    """Module and top-level name of each definition that it is made of."""
    bound: dict[str, str] = field(default_factory=dict)
    """Values that partial application or a closure gives it."""
    source: dict[str, str] = field(default_factory=dict)
    """Hash of functions that live in no file, for instance in a notebook."""


def describe_function(function: Callable[..., Any]) -> FunctionView:
    """Takes a node's function apart.

    Partial application, closures, bound methods and callable objects are followed to their
    definitions; other values bound to them count by their text.

    Args:
        function: what a node calls.

    Returns:
        Its view.

    Raises:
        StalenessError: for a bound value that has no stable text.
    """
    view = FunctionView(_name(function))
    _take_apart(function, view, "")
    return view


def _take_apart(function: Any, view: FunctionView, path: str) -> None:
    if isinstance(function, functools.partial):
        _take_apart(function.func, view, path)
        bound = {str(index): value for index, value in enumerate(function.args)}
        _bind({**bound, **function.keywords}, view, path)
    elif isinstance(function, types.MethodType):
        _take_apart(function.__func__, view, path)
        _bind_object(function.__self__, view, f"{path}self.")
    elif isinstance(function, types.FunctionType | types.BuiltinFunctionType | type):
        _enter(function, view)
        _bind(_closure_values(function), view, path)
    elif hasattr(function, "__wrapped__"):  # For instance functools.cache.
        _take_apart(inspect.unwrap(function), view, path)
    else:
        _bind_object(function, view, path)


def _enter(definition: Any, view: FunctionView) -> None:
    module = definition.__module__ or "builtins"
    if module == _INTERACTIVE:
        view.source[definition.__qualname__] = _hash_source(definition)
        return
    top = definition.__qualname__.partition(".")[0]
    # A lambda at module level has no name to look up; the whole module stands for it.
    view.entries.append((module, "" if top == "<lambda>" else top))


def _bind(values: Mapping[str, Any], view: FunctionView, path: str) -> None:
    for name, value in values.items():
        if callable(value):
            _take_apart(value, view, f"{path}{name}.")
        else:
            view.bound[f"{path}{name}"] = describe_value(value)


def _bind_object(value: Any, view: FunctionView, path: str) -> None:
    _enter(type(value), view)
    _bind(getattr(value, "__dict__", {}), view, path)


def _closure_values(function: Any) -> dict[str, Any]:
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return {}
    names = function.__code__.co_freevars
    return dict(_filled_cells(names, function.__closure__))


def _filled_cells(
    names: tuple[str, ...], cells: tuple[types.CellType, ...]
) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(names, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # Not assigned yet.
            continue


def _hash_source(definition: Any) -> str:
    try:
        return hash_text(inspect.getsource(definition))[:20]
    except (OSError, TypeError):
        code = getattr(definition, "__code__", None)
        return hash_text(
            f"{sys.version_info[:2]} {code and code.co_code} {code and code.co_consts}"
        )


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
