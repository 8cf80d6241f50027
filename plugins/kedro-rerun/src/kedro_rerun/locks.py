"""The record of each node's last successful runs: `<data_root>/.staleness/<node>.json`.

A lock file is replaced in one step, after the outputs are in place. `attempt` is written before
a node starts, so a later run knows that outputs in place may be half of an interrupted run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kedro_rerun.files import hash_text, read_json, seal, unseal, write_atomically
from kedro_rerun.run_lock import STATE_FOLDER
from kedro_rerun.shapes import ShapeError, restore

SWEEP = "sweep"
"""In the provenance of what a sweep's run made: which one, and which setting."""
_FORMAT = 1
_PLAIN_NAME = re.compile(r"[\w\-.]{1,150}")


@dataclass(frozen=True)
class OutputRecord:
    """What a run left at one output."""

    digest: str
    version: str | None = None
    """Folder of the artifact's version; None for a plain file."""


@dataclass(frozen=True)
class RunRecord:
    """One successful run."""

    fingerprint: str
    components: Mapping[str, str]
    outputs: Mapping[str, OutputRecord]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeLock:
    """All that is known about one node's runs."""

    node: str
    head: str | None = None
    """Fingerprint of the run whose outputs are in place."""
    attempt: str | None = None
    """Fingerprint of a run that has started and not yet ended."""
    runs: tuple[RunRecord, ...] = ()
    """Oldest first."""
    damaged: str | None = None
    """The file that should have told of the runs, but is not as it was written."""

    def run(self, fingerprint: str | None) -> RunRecord | None:
        """The run with a fingerprint."""
        return next((run for run in self.runs if run.fingerprint == fingerprint), None)

    @property
    def latest(self) -> RunRecord | None:
        """The run whose outputs are in place, else the newest: what to explain changes by."""
        return self.run(self.head) or (self.runs[-1] if self.runs else None)

    def attempting(self, fingerprint: str) -> NodeLock:
        """The lock while a run is in progress."""
        return replace(self, attempt=fingerprint)

    def activated(self, fingerprint: str) -> NodeLock:
        """The lock after an earlier run's outputs were put back in place."""
        run = self.run(fingerprint)
        assert run is not None, "only recorded runs are activated"
        others = tuple(known for known in self.runs if known is not run)
        return replace(self, head=fingerprint, attempt=None, runs=(*others, run))

    def completed(self, run: RunRecord, history: int) -> NodeLock:
        """The lock after a run.

        Args:
            run: takes the place of an earlier one with its fingerprint, as the head.
            history: runs to remember beside those of sweeps, which stay until `gc`.
        """
        others = tuple(known for known in self.runs if known.fingerprint != run.fingerprint)
        runs = (*others, run)
        counted = [known for known in runs if SWEEP not in known.provenance]
        forgotten = {known.fingerprint for known in counted[:-history]}
        runs = tuple(known for known in runs if known.fingerprint not in forgotten)
        return replace(self, head=run.fingerprint, attempt=None, runs=runs)


class LockStore:
    """Reads and writes the locks of one data root."""

    def __init__(self, data_root: Path) -> None:
        self.folder = data_root / STATE_FOLDER

    def read(self, node: str) -> NodeLock:
        """The lock of a node; an empty one where there is none or it is damaged."""
        path = self._path(node)
        lock = self._restore(path)
        return lock or NodeLock(node, damaged=str(path) if path.exists() else None)

    def write(self, lock: NodeLock) -> None:
        """Replaces the lock of a node in one step."""
        content = {"format": _FORMAT, **asdict(lock)}
        del content["damaged"]
        write_atomically(self._path(lock.node), json.dumps(seal(content), indent=1) + "\n")

    def forget(self, node: str) -> None:
        """Removes the lock of a node."""
        self._path(node).unlink(missing_ok=True)

    def all(self) -> Iterator[NodeLock]:
        """Every whole lock, in the order of file names."""
        for path in self._files():
            if (lock := self._restore(path)) is not None:
                yield lock

    def damaged(self) -> list[Path]:
        """Files of locks that are not as they were written, or not where."""
        return [path for path in self._files() if self._restore(path) is None]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _restore(self, path: Path) -> NodeLock | None:
        """The lock that a file holds; None where it holds no whole one, or one of another node."""
        content = unseal(read_json(path), required=False)
        if content is None or content.pop("format", None) != _FORMAT:
            return None
        try:
            lock = restore(NodeLock, content)
        except ShapeError:
            return None
        return lock if self._path(lock.node) == path else None

    def _path(self, node: str) -> Path:
        if _PLAIN_NAME.fullmatch(node) and not node.startswith("."):
            return self.folder / f"{node}.json"
        # Nodes without a name of their own are called by their datasets.
        plain = re.sub(r"[^\w\-]+", "_", node)[:100].strip("_")
        return self.folder / f"{plain}-{hash_text(node)[:12]}.json"
