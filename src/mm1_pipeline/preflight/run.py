"""A run as its preflight sees it: which nodes, and their parameters."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mm1_pipeline.config.ingest import RecordKind, SourceSplit

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What is going to be done.

    Attributes:
        nodes: Names of the nodes.
        groups: Typed parameters of those nodes by name, such as `pretrain` or `model.vision`.
        known: What was found of parameters whose check takes long, for the runs of a grid, which
            mostly have the same.
    """

    nodes: frozenset[str]
    groups: Mapping[str, Any]
    known: list[tuple[Any, Any]] = field(default_factory=list)

    def once(self, parameters: Any, look: Callable[[], T]) -> T:
        """What is found of some parameters; equal ones are looked at once."""
        for other, found in self.known:
            if other == parameters:
                return found
        self.known.append((parameters, look()))
        return self.known[-1][1]

    def get(self, name: str) -> Any:
        """A group, or a part of one by its dotted path; None where no node reads it."""
        if name in self.groups:
            return self.groups[name]
        group, _, rest = name.partition(".")
        value = self.groups.get(group)
        for part in rest.split(".") if rest and value is not None else ():
            value = getattr(value, part)
        return value

    def pretraining_sources(self) -> dict[str, RecordKind] | None:
        """Names and kinds of the sources that `shards` will hold; None if this run makes none.

        A run of later stages alone takes the shards as they are, and they are looked at when it
        does.
        """
        if not {"ingest_pretraining", "pack_shards"} <= self.nodes:
            return None
        found = self._training_sources()
        kinds = {name: kind for name, kind in found.items() if kind != RecordKind.CONVERSATION}
        synthesis = self.get("synthesis")
        if synthesis is not None and synthesis.sources:
            kinds[synthesis.name] = RecordKind.CAPTION
        return kinds

    def conversation_sources(self) -> dict[str, RecordKind] | None:
        """As `pretraining_sources`, of `sft_shards`."""
        if not {"ingest_conversations", "pack_conversations"} <= self.nodes:
            return None
        found = self._training_sources()
        return {name: kind for name, kind in found.items() if kind == RecordKind.CONVERSATION}

    def _training_sources(self) -> dict[str, RecordKind]:
        return {
            name: source.kind
            for name, source in self.get("ingest").sources.items()
            if source.split == SourceSplit.TRAIN
        }


Check = Callable[[Run], Iterable[str]]
"""Looks at a run for some node; gives a text for each mistake, which begins with the path of a
parameter, and says what was found, what is expected and how to mend it."""


def unknown(path: str, found: str, allowed: Collection[str], what: str) -> str:
    """Says of a name in a parameter that it names nothing.

    Args:
        path: Of the parameter.
        found: The name.
        allowed: What may be named.
        what: What that is, in the plural.
    """
    close = difflib.get_close_matches(found, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{path}: found {found!r}, expected one of the {what}: {_listed(allowed)}.{hint}"


def missing(path: str, place: str, expected: str) -> list[str]:
    """Says of a local path that nothing is there; what is remote is looked at when it is read."""
    if "://" in place.removeprefix("file://") or Path(place.removeprefix("file://")).exists():
        return []
    return [f"{path}: found nothing at {place!r}, expected {expected}."]


def refused(path: str, look: Callable[[], Any]) -> list[str]:
    """What a check of the library has against a parameter, with its path in front.

    Args:
        path: Of the parameter; a text that begins with it, or with one of the model's, stays as
            it is.
        look: The check; it raises ValueError.
    """
    try:
        look()
    except ValueError as error:
        text = str(error)
        return [text if text.startswith((path.partition(".")[0], "model.")) else f"{path}: {text}"]
    return []


def is_installed(module: str) -> bool:
    """Whether a library could be imported; it is not, as that may take seconds."""
    return importlib.util.find_spec(module) is not None


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "there are none"
