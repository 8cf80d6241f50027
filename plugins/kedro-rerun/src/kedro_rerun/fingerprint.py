"""The fingerprint of a node: everything that decides its outputs, by name and as one hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kedro_rerun.files import hash_json


class Cause(StrEnum):
    """What part of a fingerprint, or what else, makes a node run."""

    CODE = "code"
    """A function, class or constant that the node reaches."""
    WIRING = "wiring"
    """Which datasets are which arguments, and values bound to the function."""
    PARAMS = "params"
    INPUT = "input"
    CATALOG = "catalog"
    """How a dataset is read or written."""
    LIBRARY = "library"
    OUTPUT = "output"
    """An output is missing, or not what the node wrote."""
    UPSTREAM = "upstream"
    """A node before this one will run, so inputs may change."""
    RECORD = "record"
    """There is no record of a run."""
    MEMORY = "memory"
    """An output is kept in memory only, and something needs it."""
    FORCED = "forced"


@dataclass(frozen=True)
class Fingerprint:
    """What decides a node's outputs."""

    components: Mapping[str, str]
    """Text of each part by `<cause>:<name>`."""

    @cached_property
    def digest(self) -> str:
        """The hash of all components (64 hexadecimal digits)."""
        return hash_json(dict(self.components))

    @property
    def making(self) -> str:
        """The hash of what works on parameters and inputs: code, wiring and libraries."""
        given = (f"{Cause.PARAMS}:", f"{Cause.INPUT}:")
        return hash_json(
            {n: text for n, text in self.components.items() if not n.startswith(given)}
        )

    def of(self, cause: Cause) -> dict[str, str]:
        """The components of one cause, without its prefix."""
        prefix = f"{cause}:"
        return {
            name.removeprefix(prefix): value
            for name, value in self.components.items()
            if name.startswith(prefix)
        }
