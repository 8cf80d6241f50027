"""Says what is wrong with raw parameters, in words that lead to the line to change."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

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
            problems += _problems(name, cls, raw[name])
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ParameterError(f"{len(problems)} parameter(s) cannot be used:\n{listed}")


def build_parameters(cls: type[T], name: str, raw: Mapping[str, Any]) -> T:
    """Builds one group, for what is not a node.

    Args:
        cls: The group's class.
        name: The group's name.
        raw: Its values.

    Raises:
        ParameterError: As `check_parameters`.
    """
    check_parameters({name: raw}, {name: cls})
    return TypeAdapter(cls).validate_python(raw)


def _problems(name: str, cls: type, value: Any) -> list[str]:
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
        case _:
            return f"{path}: found {problem['input']!r}. {problem['msg']}."


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
    """The parameter class behind a path; mappings and sequences are looked through."""
    for part in path:
        if dataclasses.is_dataclass(owner) and part in (hints := get_type_hints(owner)):
            owner = _parameter_class(hints[part])
        else:
            owner = _parameter_class(owner)
    return owner


def _parameter_class(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    found = [_parameter_class(argument) for argument in get_args(hint)]
    return next((cls for cls in found if dataclasses.is_dataclass(cls)), None)
