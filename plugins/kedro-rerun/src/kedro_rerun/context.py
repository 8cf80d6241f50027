"""What a node's function may know of the run it is part of.

The runner (or a hook) sets a `BuildContext` around a node; the function asks for its
workspaces by the names of its output datasets, so it needs no path of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from kedro_rerun.artifacts import Workspace
from kedro_rerun.errors import StalenessError


@dataclass(frozen=True)
class BuildContext:
    """One node's execution: its fingerprint and the roots of the artifacts it makes."""

    node_name: str
    fingerprint: str
    roots: Mapping[str, Path] = field(default_factory=dict)
    """Root of each output artifact by dataset name."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """What the runner knows about the making, for manifests: node, environment, components."""
    mixed: tuple[str, ...] = ()
    """Of a node that is tagged `shows_lineage`: which datasets stand in more than one version
    behind what it reads; see `lineage.Lineage.mixed`."""
    making: str = ""
    """Digest of the node's code and libraries: of its fingerprint without parameters and inputs."""

    def workspace(self, dataset_name: str) -> Workspace:
        """The workspace of one output.

        Args:
            dataset_name: name in the catalog; inside a namespace the part after the last dot
                is enough when it is unique.

        Raises:
            StalenessError: when the node has no such output artifact.
        """
        names = [name for name in self.roots if name == dataset_name] or [
            name for name in self.roots if name.rpartition(".")[2] == dataset_name
        ]
        if len(names) != 1:
            raise StalenessError(
                f"Found the dataset name {dataset_name!r} in the node {self.node_name!r}, "
                f"expected one of its output artifacts: {', '.join(self.roots) or 'none'}. "
                "Name an output whose catalog entry is an artifact directory."
            )
        return Workspace(self.roots[names[0]], self.fingerprint, making=self.making)


_context: ContextVar[BuildContext | None] = ContextVar("build_context", default=None)
# Threads that load and save for a node (Kedro's --async) start without its context variables;
# for them the innermost node of the process counts.
_running: list[BuildContext] = []


@contextlib.contextmanager
def building(context: BuildContext) -> Iterator[BuildContext]:
    """Makes a context current for the block, with empty staging folders.

    Args:
        context: the node's context.

    Yields:
        The same context.
    """
    for name in context.roots:
        context.workspace(name).discard_staging()
    token = _context.set(context)
    _running.append(context)
    try:
        yield context
    finally:
        _running.remove(context)
        _context.reset(token)


def current_context() -> BuildContext | None:
    """The context of the node that runs now; None outside of a node."""
    return _context.get() or (_running[-1] if _running else None)


def workspace_for(dataset_name: str) -> Workspace:
    """The workspace of an output of the node that runs now.

    Args:
        dataset_name: the output's name in the catalog.

    Returns:
        Its workspace: write the version to `.staging`, keep progress in `.work`.

    Raises:
        StalenessError: outside of a node, or when the node has no such output artifact.
    """
    context = current_context()
    if context is None:
        raise StalenessError(
            f"Found no build context for the dataset {dataset_name!r}. Run the node with "
            "`kedro run` and without a runner of another class, or wrap the call in "
            "`with building(BuildContext(...))`."
        )
    return context.workspace(dataset_name)
