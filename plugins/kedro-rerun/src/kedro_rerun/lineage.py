"""What a run reads that it does not make: whether that is fresh, and of one lineage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from kedro_rerun.fingerprint import Cause
from kedro_rerun.graph import Storage, bare
from kedro_rerun.locks import NodeLock, RunRecord
from kedro_rerun.planning import Planner
from kedro_rerun.verdict import Action, State, Verdict

_CURRENT = "in place now"
_SHOWN = 8
"""Digits of a digest that tell versions apart."""


class StaleInput(NamedTuple):
    """One dataset that a partial run reads although the node that makes it would make it anew."""

    dataset: str
    node: str
    reason: str
    exists: bool


def stale_inputs(planner: Planner, read: Collection[str]) -> list[StaleInput]:
    """Which of the datasets that a run reads, and does not make, are not what they would be now.

    Args:
        planner: of the nodes before the run.
        read: names of datasets.

    Returns:
        Each with the reason, in the order in which their nodes can run. What lies in memory is left
        out: the run cannot read it at all.
    """
    plan, graph = planner.plan(), planner.graph
    wanted = {bare(name) for name in read}
    return [
        StaleInput(
            bare(output),
            node.name,
            _reason(plan, plan[node.name]),
            planner.outputs.exists(graph.datasets[output]),
        )
        for node in graph.nodes
        for output in node.outputs
        if bare(output) in wanted
        and plan[node.name].action is not Action.SKIP
        and graph.datasets[output].storage is not Storage.MEMORY
    ]


def told(found: Collection[StaleInput], command: str) -> str:
    """One line for each, and what makes them fresh.

    Args:
        found: at least one.
        command: what runs the nodes that make them.
    """
    number = "one dataset" if len(found) == 1 else f"{len(found)} datasets"
    lines = "\n".join(f"  {item.dataset} ({item.node}): {item.reason}" for item in found)
    return (
        f"This run leaves out nodes before it, and reads {number} that they would make anew:\n"
        f"{lines}\nTo make them fresh first: {command}"
    )


def _reason(plan: Mapping[str, Verdict], verdict: Verdict) -> str:
    """The first cause of a verdict, looked for upstream if there is none of its own."""
    missing = "missing; " if verdict.state is State.MISSING else ""
    match verdict.action:
        case Action.ACTIVATE:
            return "an earlier version is what it would be now"
        case Action.FETCH:
            return f"{missing}it would be taken from the cache"
    own = [reason for reason in verdict.reasons if reason.cause is not Cause.UPSTREAM]
    if own:
        return f"{missing}{own[0]}"
    for reason in verdict.reasons:
        if reason.name in plan:
            cause = _reason(plan, plan[reason.name])
            return f"{missing}{cause if ' of ' in cause else f'{cause}, of {reason.name}'}"
    return f"{missing}it would run"


class Lineage:
    """From what each dataset of a data root was made, by the records of all nodes.

    Args:
        locks: of all nodes.
        foreseen: digests of what will be in place when earlier versions are put back, by bare name.
    """

    def __init__(
        self, locks: Iterable[NodeLock], foreseen: Mapping[str, str | None] | None = None
    ) -> None:
        self._made: dict[tuple[str, str], RunRecord] = {}
        self._current: dict[str, str] = {}
        for lock in locks:
            for run in lock.runs:
                for name, output in run.outputs.items():
                    self._made[bare(name), output.digest] = run
            head = lock.run(lock.head)
            for name, output in head.outputs.items() if head is not None else ():
                self._current[bare(name)] = output.digest
        for name, digest in (foreseen or {}).items():
            if digest is not None and (name, digest) in self._made:
                self._current[name] = digest

    def mixed(self, read: Mapping[str, str]) -> list[str]:
        """Which datasets stand behind others in more than one version.

        Args:
            read: digest of what is read, by name.

        Returns:
            A sentence for each, by name: its versions, and which dataset was made from which; empty
            where all is of one lineage, and that the present one.
        """
        users: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        waiting = [(bare(name), digest) for name, digest in read.items()]
        seen = set(waiting)
        for name, digest in waiting:
            if name in self._current:
                users[name][digest].add("")
        while waiting:
            name, digest = waiting.pop()
            run = self._made.get((name, digest))
            for component, used in run.components.items() if run is not None else ():
                cause, _, source = component.partition(":")
                source = bare(source)
                if cause != Cause.INPUT or source not in self._current:
                    continue
                users[source][used].add(name)
                if (source, used) not in seen:
                    seen.add((source, used))
                    waiting.append((source, used))
        for name, versions in users.items():
            versions[self._current[name]].add(_CURRENT)
        return [
            f"{name}: {'; '.join(_version(*item) for item in sorted(versions.items()))}."
            for name, versions in sorted(users.items())
            if len(versions) > 1
        ]


def _version(digest: str, users: set[str]) -> str:
    readers = sorted(users - {"", _CURRENT})
    notes = [f"behind {', '.join(readers)}"] if readers else []
    notes += ["read itself"] if "" in users else []
    notes += [_CURRENT] if _CURRENT in users else []
    return f"version {digest[:_SHOWN]} {', '.join(notes)}"
