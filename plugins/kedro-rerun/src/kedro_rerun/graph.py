"""The view of a pipeline that staleness works on, free of Kedro's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from kedro_rerun.errors import StalenessError, unknown_name

UNKNOWN = "unknown"
"""Digest of an input that nobody can tell; it never equals an earlier one."""


class Storage(StrEnum):
    """Where a dataset's content is, which decides how its digest is found."""

    ARTIFACT = "artifact"
    """Versions under a root."""
    PATH = "path"
    """A file or folder, local or remote."""
    PARAMETER = "parameter"
    """A value of the configuration."""
    MEMORY = "memory"
    """Gone when the process ends."""
    CUSTOM = "custom"
    """The dataset gives its digest itself."""
    OPAQUE = "opaque"
    """Unknown, so it counts as changed in every run."""


@dataclass(frozen=True)
class Dataset:
    """One catalog entry."""

    name: str
    storage: Storage
    location: Callable[[], str] | None = None
    """Root, path or URL; looked up when needed, as versioned files move."""
    next_location: Callable[[], str] | None = None
    """Where new content goes, if that is not its location: a version of its own."""
    value: Any = None
    """A parameter's value."""
    digest: Callable[[], str] | None = None
    """For custom storage the digest; for opaque one, whether there is anything."""
    options: Mapping[str, str] = field(default_factory=dict)
    """How it is read and written, without places and credentials."""
    code: tuple[str, str] | None = None
    """Module and name of its class."""

    @property
    def path(self) -> Path:
        """Local path of an artifact's root or of a file."""
        assert self.location is not None, f"{self.name} has no location"
        return Path(self.location().removeprefix("file://"))

    @property
    def next_path(self) -> Path:
        """Local path that new content goes to."""
        if self.next_location is None:
            return self.path
        return Path(self.next_location().removeprefix("file://"))

    @property
    def is_local(self) -> bool:
        return self.location is not None and "://" not in self.location().removeprefix("file://")


@dataclass(frozen=True)
class StaleNode:
    """One node of a pipeline."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    wiring: Mapping[str, str] = field(default_factory=dict)
    """Which dataset is which argument and which result."""
    tags: frozenset[str] = frozenset()
    parts: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """What it reads of a parameter group, by dataset; see `narrowing.narrowed`."""


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run, with their datasets."""

    nodes: tuple[StaleNode, ...]
    datasets: Mapping[str, Dataset]

    @cached_property
    def producers(self) -> dict[str, StaleNode]:
        """The node that makes a dataset, by the dataset's bare name."""
        return {bare(output): node for node in self.nodes for output in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[StaleNode]]:
        """The nodes that read a dataset, by the dataset's bare name."""
        found: dict[str, list[StaleNode]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(bare(name), []).append(node)
        return found

    def node(self, name: str) -> StaleNode:
        """A node by its name.

        Raises:
            StalenessError: when there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise StalenessError(unknown_name("node", name, (node.name for node in self.nodes)))


def bare(name: str) -> str:
    """A dataset's name without Kedro's transcoding suffix (`table@pandas`)."""
    return name.partition("@")[0]
