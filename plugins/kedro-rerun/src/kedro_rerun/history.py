"""What each run of a data root did: `<data_root>/.staleness/runs/<number>.json`.

A record is written before the first node, before and after every node that runs, and at the end,
each time in one step: of a run that was killed it tells what was done by then. It is there to look
back at, and decides nothing: what is fresh, the nodes' own records say (`locks`).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from kedro_rerun import artifacts
from kedro_rerun.components import Settings
from kedro_rerun.errors import StalenessError, without_secrets
from kedro_rerun.files import hash_json, is_running, read_json, seal, unseal, write_cache
from kedro_rerun.fingerprint import Cause
from kedro_rerun.graph import Storage, bare
from kedro_rerun.planning import Planner
from kedro_rerun.run_lock import STATE_FOLDER
from kedro_rerun.shapes import ShapeError, restore
from kedro_rerun.verdict import Verdict

FOLDER = "runs"
Scores = Callable[[Mapping[str, Path]], Mapping[str, float]]
_FORMAT = 1
_NAME = re.compile(r"\d{6,}\.json")
_DIGITS = 16
TOLD = (Cause.PARAMS, Cause.INPUT, Cause.LIBRARY)
"""Causes whose components a record holds; of code it holds a hash a node."""
_MAX_ERROR = 300


class Outcome(StrEnum):
    """How a run ended."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    """By its user."""
    KILLED = "killed"
    """It never wrote how it ended."""


class NodeOutcome(StrEnum):
    """What became of a node in a run."""

    WAITING = "waiting"
    """Not reached."""
    RUNNING = "running"
    """Begun and not ended: where a run is, or was when it was killed."""
    RAN = "ran"
    FAILED = "failed"
    FRESH = "fresh"
    PUT_BACK = "put back"
    """An earlier run's outputs were."""
    FETCHED = "from the cache"


@dataclass(frozen=True)
class NodeRun:
    """One node in a run."""

    outcome: str = NodeOutcome.WAITING
    seconds: float | None = None
    """How long it ran."""
    fingerprint: str | None = None
    code: str | None = None
    """Hash of the code that it reaches."""


@dataclass(frozen=True)
class Given:
    """What some nodes were given alike: parameters, inputs that no node of the run makes, versions
    of libraries.
    """

    nodes: tuple[str, ...]
    values: Mapping[str, str]
    """Text by name of the component, see `fingerprint`."""


@dataclass(frozen=True)
class PastRun:
    """One run, past or in progress."""

    number: int
    started_at: str
    seconds: float = 0.0
    """From before the first node to the end, or to the last time that was written."""
    outcome: str = Outcome.RUNNING
    error: str | None = None
    command: str = ""
    process: tuple[int, str] = (0, "")
    """Number and host."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Environment, commit; of a sweep's run, which."""
    nodes: Mapping[str, NodeRun] = field(default_factory=dict)
    given: tuple[Given, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Folder of each artifact that it made or found fresh, in the data root, by dataset."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """What `Settings.headlines` gave, the most telling first."""

    @cached_property
    def components(self) -> dict[str, dict[str, str]]:
        """What each node was given, by node."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.nodes}
        for given in self.given:
            for node in given.nodes:
                found.setdefault(node, {}).update(given.values)
        return found

    @property
    def ran(self) -> dict[str, NodeRun]:
        """Nodes that really ran, and the one that failed."""
        did = (NodeOutcome.RAN, NodeOutcome.FAILED)
        return {name: node for name, node in self.nodes.items() if node.outcome in did}

    @property
    def cost(self) -> float:
        """Seconds that its nodes ran."""
        return sum(node.seconds or 0.0 for node in self.nodes.values())


class History:
    """Reads and writes the records of runs of one data root."""

    def __init__(self, data_root: Path) -> None:
        self._data_root = data_root
        self.folder = data_root / STATE_FOLDER / FOLDER

    def runs(self) -> list[PastRun]:
        """Whole records, newest first."""
        found = [run for path in self._files() if (run := self._restore(path)) is not None]
        found.sort(key=lambda run: -run.number)
        return [_ended(run, is_newest=place == 0) for place, run in enumerate(found)]

    def damaged(self) -> list[Path]:
        """Records that are not as they were written."""
        return [path for path in self._files() if self._restore(path) is None]

    def run(self, number: int) -> PastRun:
        """The run with a number.

        Raises:
            StalenessError: there is none, or its record is damaged.
        """
        runs = {run.number: run for run in self.runs()}
        if number in runs:
            return runs[number]
        if self._path(number) in self.damaged():
            raise StalenessError(f"{self._path(number)}: the record of run {number} is damaged.")
        have = f"{min(runs)} to {max(runs)}" if runs else "none"
        raise StalenessError(
            f"Found no run {number} in {self._data_root}; there are: {have}. `runs` lists them."
        )

    def next_number(self) -> int:
        """One more than any run had whose record is there."""
        return max((int(path.stem) for path in self._files()), default=0) + 1

    def write(self, run: PastRun) -> None:
        """Replaces a record in one step, where that is possible: a full disk ends no run here."""
        content = {"format": _FORMAT, **asdict(run)}
        write_cache(self._path(run.number), json.dumps(seal(content)) + "\n")

    def collect_garbage(
        self, remembered: Iterable[str], keep: int, dry_run: bool
    ) -> list[artifacts.Removed]:
        """Removes records of which nothing is left: no node remembers anything that ran in them.

        Args:
            remembered: fingerprints that nodes remember.
            keep: newest runs that stay in any case.
            dry_run: only tells what would go.
        """
        known, damaged = set(remembered), self.damaged()
        gone = damaged + [
            self._path(run.number)
            for run in self.runs()[max(1, keep) :]
            if not known & {node.fingerprint for node in run.nodes.values()}
        ]
        return self._remove(sorted(gone), dry_run)

    def trim(self, keep: int) -> None:
        """Removes the oldest records."""
        with contextlib.suppress(OSError):
            self._remove(self._files()[:-keep], dry_run=False)

    def _remove(self, paths: list[Path], dry_run: bool) -> list[artifacts.Removed]:
        removed = [artifacts.Removed(path, path.stat().st_size) for path in paths]
        for path in paths if not dry_run else []:
            path.unlink()
        return removed

    def _files(self) -> list[Path]:
        found = (path for path in self.folder.glob("*.json") if _NAME.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.stem))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _restore(self, path: Path) -> PastRun | None:
        content = unseal(read_json(path))
        if content is None or content.pop("format", None) != _FORMAT:
            return None
        try:
            run = restore(PastRun, content)
        except ShapeError:
            return None
        return run if self._path(run.number) == path else None


class RunLog:
    """Writes the record of a run while it goes on.

    Args:
        planner: of the run.
        plan: what is to become of each node.
        provenance: environment, commit.
    """

    def __init__(
        self, planner: Planner, plan: Mapping[str, Verdict], provenance: Mapping[str, Any]
    ) -> None:
        self._planner = planner
        self._history = History(planner.data_root)
        self._given: dict[str, dict[str, str]] = {}
        self._started = time.time()
        self._run = PastRun(
            number=self._history.next_number(),
            started_at=format_time(self._started),
            command=without_secrets(shlex.join(sys.argv)),
            process=(os.getpid(), socket.gethostname()),
            provenance=dict(provenance),
        )
        for verdict in plan.values():
            self._note(verdict, NodeOutcome.WAITING)
        self._history.trim(planner.settings.run_history - 1)
        self._write()

    @property
    def number(self) -> int:
        """Of the run."""
        return self._run.number

    def note(self, verdict: Verdict, outcome: NodeOutcome, seconds: float | None = None) -> None:
        """Says what became of a node."""
        self._note(verdict, outcome, seconds)
        if outcome is not NodeOutcome.FRESH:  # Of those there are many, in no time.
            self._write()

    @contextlib.contextmanager
    def timing(self, verdict: Verdict) -> Iterator[None]:
        """Notes a node that runs in the block."""
        self.note(verdict, NodeOutcome.RUNNING)
        started, outcome = time.time(), NodeOutcome.FAILED
        try:
            yield
            outcome = NodeOutcome.RAN
        finally:
            self.note(verdict, outcome, round(time.time() - started, 3))

    def end(self, error: BaseException | None, headlines: Scores | None) -> None:
        """Says how the run ended, and what came out.

        Args:
            error: that ended it.
            headlines: gives scores, from the places of the outputs that the run made or found.
        """
        self._run = replace(
            self._run,
            outcome=_outcome(error),
            error=_first_line(error),
            versions=self._versions(),
            scores=self._scores(headlines) if headlines is not None else {},
        )
        self._write()

    def _note(self, verdict: Verdict, outcome: NodeOutcome, seconds: float | None = None) -> None:
        fingerprint, components = verdict.fingerprint, verdict.components
        made = self._planner.graph.producers
        self._given[verdict.node] = {
            name: text[:_DIGITS] if cause == Cause.INPUT else text
            for name, text in components.items()
            for cause, _, rest in [name.partition(":")]
            if cause in TOLD and not (cause == Cause.INPUT and bare(rest) in made)
        }
        code = {n: text for n, text in components.items() if n.startswith(f"{Cause.CODE}:")}
        node = NodeRun(
            outcome,
            seconds,
            fingerprint.digest if fingerprint else None,
            hash_json(code)[:_DIGITS],
        )
        self._run = replace(self._run, nodes={**self._run.nodes, verdict.node: node})

    def _write(self) -> None:
        alike: dict[tuple[str, str], list[str]] = {}
        for node, values in self._given.items():
            for item in values.items():
                alike.setdefault(item, []).append(node)
        grouped: dict[tuple[str, ...], dict[str, str]] = {}
        for (name, text), nodes in alike.items():
            grouped.setdefault(tuple(nodes), {})[name] = text
        given = tuple(Given(nodes, values) for nodes, values in grouped.items())
        seconds = round(time.time() - self._started, 3)
        self._run = replace(self._run, given=given, seconds=seconds)
        self._history.write(self._run)

    def _outputs(self) -> Iterator[tuple[str, Path]]:
        """What the run made or found fresh, and where it lies."""
        unfinished = (NodeOutcome.WAITING, NodeOutcome.RUNNING, NodeOutcome.FAILED)
        for node in self._planner.graph.nodes:
            if self._run.nodes[node.name].outcome in unfinished:
                continue
            for output in self._planner.datasets(node.outputs):
                if output.storage is Storage.ARTIFACT:
                    if (artifact := artifacts.current(output.path)) is not None:
                        yield output.name, artifact.path
                elif output.storage is Storage.PATH and output.is_local:
                    yield output.name, output.path

    def _versions(self) -> dict[str, str]:
        root = self._planner.data_root
        return {
            name: path.relative_to(root).as_posix()
            for name, path in self._outputs()
            if path.is_relative_to(root)
            and self._planner.graph.datasets[name].storage is Storage.ARTIFACT
        }

    def _scores(self, headlines: Scores) -> dict[str, float]:
        try:
            found = headlines(dict(self._outputs()))
            return {str(name): float(value) for name, value in found.items()}
        except Exception as error:  # A project's own code, which must not fail a run that is done.
            logging.getLogger("kedro.rerun").warning(
                "The scores of run %d cannot be told: %s: %s",
                self._run.number,
                type(error).__name__,
                error,
            )
            return {}


@contextlib.contextmanager
def recording(
    planner: Planner, plan: Mapping[str, Verdict], settings: Settings, provenance: Mapping[str, Any]
) -> Iterator[RunLog]:
    """Keeps the record of a run for the block.

    Yields:
        What notes the nodes.
    """
    log = RunLog(planner, plan, provenance)
    try:
        yield log
    except BaseException as error:
        log.end(error, settings.headlines)
        raise
    log.end(None, settings.headlines)


def format_time(seconds: float) -> str:
    """A moment, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _ended(run: PastRun, is_newest: bool) -> PastRun:
    """Tells a run in progress from one that was killed: there is one at a time, the newest."""
    if run.outcome != Outcome.RUNNING:
        return run
    pid, host = run.process
    if is_newest and (host != socket.gethostname() or is_running(pid)):
        return run
    return replace(run, outcome=Outcome.KILLED)


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome.DONE
    return Outcome.FAILED if isinstance(error, Exception) else Outcome.STOPPED


def _first_line(error: BaseException | None) -> str | None:
    if error is None:
        return None
    lines = without_secrets(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MAX_ERROR]
