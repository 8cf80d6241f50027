"""What a node gets of its parameters, where that is less than the group."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kedro_rerun.errors import StalenessError

Function = TypeVar("Function", bound=Callable[..., Any])

_NARROWED = "__narrowed__"


def narrowed(**parts: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Gives a node's function a part of its parameters, so that the rest makes nothing stale.

        @narrowed(config=TrainConfig.mixture_part)
        def plan_mixture(config, shards): ...

    The function gets what its fingerprint was taken of, so it cannot read more by mistake.

    Args:
        parts: by argument, what makes the part of the value that the catalogue gives. It must
            depend on nothing else; fields keep their names, so that reasons can tell them.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        if unknown := parts.keys() - signature.parameters.keys():
            raise StalenessError(
                f"{function.__qualname__}: found no argument {', '.join(sorted(unknown))} to "
                f"narrow, expected one of {', '.join(signature.parameters)}."
            )

        setattr(function, _NARROWED, parts)

        # Only the function is bound to it: whatever a closure holds counts as a node's input.
        @functools.wraps(function)
        def with_parts(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(function).bind(*args, **kwargs)
            for name, part in getattr(function, _NARROWED).items():
                bound.arguments[name] = part(bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return with_parts  # pyright: ignore[reportReturnType]

    return decorate


def parts_by_dataset(function: Callable[..., Any], inputs: Any) -> Mapping[str, Callable]:
    """What a node reads of its input datasets, by their names.

    Args:
        function: The node's.
        inputs: As Kedro's `node` takes them: a name, names in the order of the arguments, or
            names by argument.
    """
    parts = getattr(function, _NARROWED, {})
    if not parts:
        return {}
    match inputs:
        case Mapping():
            bound = inspect.signature(function).bind(**inputs)
        case str():
            bound = inspect.signature(function).bind(inputs)
        case _:
            bound = inspect.signature(function).bind(*(inputs or ()))
    return {bound.arguments[name]: part for name, part in parts.items()}
