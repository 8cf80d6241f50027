"""Says what is wrong with raw parameters, in words that lead to the line to change."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config._base import MOST, bounds

T = TypeVar("T")


class ParameterError(ValueError):
    """One or more parameters cannot be used; raised before any work starts."""


def check_parameters(
    raw: Mapping[str, Any], types: Mapping[str, type], free: Iterable[str] = ()
) -> None:
    """Checks every parameter group against its class.

    Args:
        raw: Parameters as the configuration files give them, by group.
        types: The class of each group. A dotted name is a part of another group, whose class
            checks it.
        free: Names outside any group that are allowed as well.

    Raises:
        ParameterError: Names each bad parameter by its dotted path, what was found and what
            is expected.
    """
    types = {name: cls for name, cls in types.items() if "." not in name}
    allowed = {*types, *free}
    problems = [_unknown(name, allowed) for name in raw if name not in allowed]
    for name, cls in types.items():
        if name not in raw:
            problems.append(f"{name}: missing; the pipeline needs this group of parameters.")
        else:
            problems += parameter_problems(name, cls, raw[name])
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ParameterError(f"{len(problems)} parameter(s) cannot be used:\n{listed}")


def build_parameters(cls: type[T], name: str, raw: Mapping[str, Any]) -> T:
    """Builds one group, for what is not a node.

    Args:
        cls: The group's class.
        name: The group's name, which begins the path in messages.
        raw: Its values as YAML gives them; unknown names are refused.

    Raises:
        ParameterError: As `check_parameters`.
    """
    check_parameters({name: raw}, {name: cls})
    return TypeAdapter(cls).validate_python(raw)


def parameter_problems(name: str, cls: type, value: Any) -> list[str]:
    """What is wrong with one group, each with the dotted path of its parameter.

    Args:
        name: The group's name.
        cls: Its class.
        value: As the configuration files give it.
    """
    try:
        TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        return [_describe(name, cls, problem) for problem in error.errors()]
    return []


def _describe(name: str, cls: type, problem: Any) -> str:
    path = ".".join(str(part) for part in (name, *problem["loc"]))
    match problem["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            owner = _class_at(cls, problem["loc"][:-1])
            return _unknown(path, _field_names(owner))
        case "missing" | "missing_argument":
            return f"{path}: missing, and it has no default."
        case "value_error" if problem["loc"][-1:] == ("[key]",):  # The name of an entry.
            return f"{'.'.join(str(part) for part in (name, *problem['loc'][:-2]))}: " + str(
                problem["ctx"]["error"]
            )
        case "value_error":
            # A group's own message starts with the field it is about.
            return f"{path}.{problem['ctx']['error']}"
        case "out_of_bounds":
            is_key = problem["loc"][-1:] == ("[key]",)
            path = ".".join(str(part) for part in (name, *problem["loc"][: -2 if is_key else None]))
            found = problem["input"]
            is_above = isinstance(found, int) and found > MOST
            allowed = _allowed_number(cls, problem["loc"], is_above=is_above)
            return f"{path}: found {found!r}, expected {allowed}."
        case _:
            return f"{path}: found {problem['input']!r}, {_expected(problem)}"


def _expected(problem: Any) -> str:
    """Pydantic's text as the project words its own, with the nearest of values that are listed."""
    text = problem["msg"].replace("Input should be ", "expected ")
    listed = re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))
    close = difflib.get_close_matches(str(problem["input"]), listed, n=1)
    return f"{text}; did you mean {close[0]!r}?" if close else f"{text}."


def _allowed_number(cls: type, loc: tuple[Any, ...], *, is_above: bool) -> str:
    """What a number may be, by the bounds that its field declares.

    Args:
        cls: the group.
        loc: where in the group the number stands.
        is_above: whether what was found is too much; else a ceiling that nobody meets is left out.
    """
    hint = _hint_at(cls, loc)
    found = _bounds_of(hint)
    if found is None:
        return "a finite number"
    kind, allowed = found
    most = f" and at most {MOST}" if is_above and allowed.le == MOST else ""
    or_null = ", or null" if type(None) in get_args(hint) else ""
    return f"a {'whole ' if kind is int else ''}number of {allowed}{most}{or_null}"


def _bounds_of(hint: Any) -> tuple[type, bounds] | None:
    """Type and bounds of the number that a hint allows, if it does."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        own = next((item for item in metadata if isinstance(item, bounds)), None)
        return (inner, own) if own is not None else _bounds_of(inner)
    found = (_bounds_of(argument) for argument in get_args(hint))
    return next((item for item in found if item is not None), None)


def _unknown(path: str, allowed: Iterable[str]) -> str:
    names = sorted(allowed)
    close = difflib.get_close_matches(path.rsplit(".", 1)[-1], names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(names)}."
    return f"{path}: unknown parameter; {hint}"


def _field_names(owner: Any) -> list[str]:
    if dataclasses.is_dataclass(owner):
        return [field.name for field in dataclasses.fields(owner)]
    return []


def _class_at(owner: Any, path: Iterable[Any]) -> Any:
    """The parameter class behind a path."""
    return _parameter_class(_hint_at(owner, path))


def _hint_at(hint: Any, path: Iterable[Any]) -> Any:
    """What may stand at a path: a key of a mapping is one, even if a field is called so, too."""
    parts = tuple(path)
    for part, following in zip(parts, (*parts[1:], None), strict=False):
        inner = _unwrapped(hint)
        arguments = get_args(inner)
        if dataclasses.is_dataclass(inner):
            hint = get_type_hints(inner, include_extras=True).get(part, hint)
        elif get_origin(inner) is dict:
            hint = arguments[0 if following == "[key]" else 1]
        elif arguments and isinstance(part, int):  # Of a tuple, whose last type may go on.
            hint = arguments[min(part, len(arguments) - 1)]
            hint = arguments[0] if hint is ... else hint
    return hint


def _unwrapped(hint: Any) -> Any:
    """A hint without metadata, and without null beside one other type."""
    if get_origin(hint) is Annotated:
        return _unwrapped(get_args(hint)[0])
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    is_optional = get_origin(hint) in (Union, UnionType) and len(kinds) == 1
    return _unwrapped(kinds[0]) if is_optional else hint


def _parameter_class(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    found = [_parameter_class(argument) for argument in get_args(hint)]
    return next((cls for cls in found if dataclasses.is_dataclass(cls)), None)
