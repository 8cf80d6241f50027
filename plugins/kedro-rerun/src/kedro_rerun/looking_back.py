"""What was changed from one run to another, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kedro_rerun.fingerprint import Cause
from kedro_rerun.history import TOLD, History, NodeRun, PastRun
from kedro_rerun.locks import LockStore
from kedro_rerun.parameters import Change, diff


@dataclass(frozen=True)
class Listed:
    """A run with what was changed before it."""

    run: PastRun
    changes: tuple[Change, ...]
    """Parameters that differ from when each of its nodes was asked for before, names without
    `params:`."""
    code: tuple[str, ...]
    """Nodes whose code differs from then."""
    is_first: bool
    """Whether no node of it was asked for before."""


@dataclass(frozen=True)
class RunDifference:
    """Two runs, and only what differs."""

    first: PastRun
    second: PastRun
    parameters: tuple[Change, ...]
    scores: Mapping[str, tuple[float | None, float | None]]
    code: Mapping[str, tuple[str, ...]]
    """Parts of the code that differ, by node; none where nobody remembers which."""
    libraries: tuple[Change, ...]
    inputs: tuple[str, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Nodes that one of them did not ask for; they are not compared."""


def list_runs(history: History) -> list[Listed]:
    """Every run, newest first, with what was changed before it."""
    listed, before, code = [], dict[str, dict[str, str]](), dict[str, str | None]()
    for run in reversed(history.runs()):
        known = [node for node in run.nodes if node in before]
        changes = dict[str, Change]()
        for node in known:
            for change in _diff(before[node], run.components[node], Cause.PARAMS):
                changes[change.path] = change
        edited = tuple(node for node in known if code[node] != run.nodes[node].code)
        listed.append(Listed(run, _sorted(changes), edited, not known))
        before |= run.components
        code |= {name: node.code for name, node in run.nodes.items()}
    return listed[::-1]


def compare_runs(history: History, first: int, second: int) -> RunDifference:
    """What differs between two runs, of the nodes that both asked for.

    Args:
        history: of a data root.
        first: number of a run.
        second: number of another.

    Raises:
        StalenessError: one is not there.
    """
    a, b = history.run(first), history.run(second)
    common = [node for node in b.nodes if node in a.nodes]
    found: dict[Cause, dict[str, Change]] = {cause: {} for cause in TOLD}
    for node in common:
        for cause, changes in found.items():
            for change in _diff(a.components[node], b.components[node], cause):
                changes[change.path] = change
    names = dict.fromkeys((*a.scores, *b.scores))
    return RunDifference(
        a,
        b,
        _sorted(found[Cause.PARAMS]),
        {
            name: (a.scores.get(name), b.scores.get(name))
            for name in names
            if a.scores.get(name) != b.scores.get(name)
        },
        {
            node: _changed_parts(history, node, a.nodes[node], b.nodes[node])
            for node in common
            if a.nodes[node].code != b.nodes[node].code
        },
        _sorted(found[Cause.LIBRARY]),
        tuple(sorted(found[Cause.INPUT])),
        (
            tuple(node for node in a.nodes if node not in b.nodes),
            tuple(node for node in b.nodes if node not in a.nodes),
        ),
    )


def _diff(before: Mapping[str, str], after: Mapping[str, str], cause: Cause) -> list[Change]:
    prefix = f"{cause}:"
    sides = [
        {n.removeprefix(prefix): text for n, text in side.items() if n.startswith(prefix)}
        for side in (before, after)
    ]
    return diff(*sides)


def _sorted(changes: Mapping[str, Change]) -> tuple[Change, ...]:
    return tuple(changes[name] for name in sorted(changes))


def _changed_parts(history: History, node: str, *sides: NodeRun) -> tuple[str, ...]:
    """Names of the functions that differ, by the node's own record."""
    lock = LockStore(history.folder.parents[1]).read(node)
    runs = [lock.run(side.fingerprint) for side in sides]
    if runs[0] is None or runs[1] is None:
        return ()
    return tuple(
        change.path for change in _diff(runs[0].components, runs[1].components, Cause.CODE)
    )
