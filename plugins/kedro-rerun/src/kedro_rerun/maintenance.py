"""What the commands beside `run` do: status, explain, accept, gc, verify."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kedro_rerun import artifacts
from kedro_rerun.errors import StalenessError
from kedro_rerun.fingerprint import Cause
from kedro_rerun.history import History
from kedro_rerun.locks import LockStore, NodeLock, OutputRecord, RunRecord
from kedro_rerun.manifests import MANIFEST
from kedro_rerun.outputs import OutputStore
from kedro_rerun.planning import Planner
from kedro_rerun.preflight import concerning
from kedro_rerun.run_lock import WhenBusy, hold_run_lock
from kedro_rerun.shared_cache import share
from kedro_rerun.verdict import Action, State, Verdict

EXIT_FRESH = 0
EXIT_DAMAGED = 1
EXIT_STALE = 3


@dataclass(frozen=True)
class StatusRow:
    """One node in the table of `status`."""

    node: str
    state: str
    action: str
    reasons: tuple[str, ...]
    certain: bool
    """False when the node only runs if nodes before it make something new."""
    finished_at: str | None
    """When the outputs in place were made."""
    seconds: float | None
    """How long it took to make them; None where nobody noted it, as for accepted ones."""
    interrupted: bool
    """Whether a run of the node began and did not end."""
    mistakes: tuple[str, ...] = ()
    """What the project's preflight knows to stand in its way, if it must run."""


@dataclass(frozen=True)
class Explanation:
    """Everything about one node's verdict."""

    status: StatusRow
    fingerprint: str | None
    components: Mapping[str, str]
    """What decides the node's outputs now. Inputs that nodes before it must make first are left
    out, and there is no fingerprint before they have run."""
    runs: tuple[Mapping[str, Any], ...]
    """Remembered runs, newest first."""


@dataclass(frozen=True)
class Problem:
    """One difference between the disk and what was written."""

    path: str
    text: str


def status(planner: Planner) -> list[StatusRow]:
    """The state of every node of a pipeline; changes nothing but caches.

    Args:
        planner: of the pipeline whose nodes are told.

    Returns:
        A row a node, in an order in which they can run.
    """
    look, plan = planner.settings.preflight, planner.plan()
    must_run = any(verdict.action is Action.RUN for verdict in plan.values())
    found = list(look(planner.graph)) if look is not None and must_run else []
    rows = []
    for verdict in plan.values():
        row = _row(planner, verdict)
        if verdict.action is Action.RUN:
            row = replace(row, mistakes=tuple(concerning(found, {verdict.node})))
        rows.append(row)
    planner.save_caches()
    return rows


def exit_code(rows: Collection[StatusRow]) -> int:
    """0 when all nodes are fresh, else 3."""
    return EXIT_FRESH if all(row.state == State.FRESH for row in rows) else EXIT_STALE


def explain(planner: Planner, node: str) -> Explanation:
    """Why a node would run or not, and what it is made from.

    Args:
        planner: of a pipeline with the node.
        node: its name.

    Raises:
        StalenessError: for an unknown node.
    """
    planner.graph.node(node)
    verdict = planner.plan()[node]
    planner.save_caches()
    lock = planner.lock(node)
    fingerprint = verdict.fingerprint
    return Explanation(
        _row(planner, verdict),
        fingerprint.digest if fingerprint else None,
        verdict.components,
        tuple(_describe_run(run, lock) for run in reversed(lock.runs)),
    )


def accept(planner: Planner, nodes: Collection[str]) -> list[StatusRow]:
    """Takes the outputs in place for what nodes would make now, without running them.

    For changes that cannot alter results, such as a refactoring before an expensive node.

    Args:
        planner: of a pipeline with the nodes and those before them.
        nodes: their names, in any order: those before others come first.

    Returns:
        The new status of each, in an order in which they can run.

    Raises:
        StalenessError: when an output is missing or damaged, or earlier nodes must run first. What
            came before in that order is accepted then.
    """
    ordered = _ordered(planner, nodes)
    with hold_run_lock(planner.data_root, WhenBusy.REFUSE):
        for node in ordered:
            _accept(planner, planner.plan()[node])
        planner.save_caches()
    plan = planner.plan()
    return [_row(planner, plan[node]) for node in ordered]


def accept_all(planner: Planner) -> list[StatusRow]:
    """Accepts every node that nothing but code and versions of libraries makes stale.

    Nodes that go back to a parameter, an input or a damaged output as well are left, as are those
    that come after them.

    Args:
        planner: of a pipeline.

    Returns:
        The new status of those that were accepted, and of those that are still not fresh.

    Raises:
        StalenessError: while a run is in progress.
    """
    accepted = []
    with hold_run_lock(planner.data_root, WhenBusy.REFUSE):
        for node in planner.graph.nodes:
            verdict = planner.plan()[node.name]
            is_stale = verdict.action is Action.RUN and verdict.fingerprint is not None
            if is_stale and verdict.may_alter_nothing:
                with contextlib.suppress(StalenessError):  # Its outputs are not whole.
                    _accept(planner, verdict)
                    accepted.append(node.name)
        planner.save_caches()
    return [
        row
        for row in (_row(planner, verdict) for verdict in planner.plan().values())
        if row.node in accepted or row.state != State.FRESH
    ]


def push(planner: Planner) -> dict[str, bool]:
    """Gives the shared cache what is fresh here, for instance what was made before there was one.

    Args:
        planner: of the pipeline, with a cache.

    Returns:
        By fresh node, whether the cache has its outputs now.

    Raises:
        StalenessError: when the project names no cache.
    """
    if planner.cache is None:
        raise StalenessError(
            "Found no cache: expected Settings(cache=...) in settings.py, or the parameter "
            "`rerun_cache`, to name a path or a URL."
        )
    given = {}
    with hold_run_lock(planner.data_root):
        plan = planner.plan()
        for node in planner.graph.nodes:
            verdict = plan[node.name]
            if verdict.action is Action.SKIP and verdict.fingerprint is not None:
                run = planner.lock(node.name).run(verdict.fingerprint.digest)
                assert run is not None, "only recorded runs are fresh"
                outputs = planner.datasets(node.outputs)
                given[node.name] = share(planner.cache, run, outputs, planner.outputs)
        planner.save_caches()
    return given


def collect_garbage(
    data_root: Path,
    known_nodes: Collection[str] | None = None,
    keep_runs: int = 2,
    dry_run: bool = False,
) -> list[artifacts.Removed]:
    """Removes versions, progress, copies and records of runs that no remembered run refers to.

    Args:
        data_root: the environment's folder.
        known_nodes: nodes of all registered pipelines; records of others go. None keeps all.
        keep_runs: runs to remember for each node; current outputs always stay.
        dry_run: only tells what would go.

    Returns:
        What was removed.

    Raises:
        StalenessError: while a run is in progress, or when a record is damaged.
    """
    with hold_run_lock(data_root, WhenBusy.REFUSE, only_looks=dry_run):
        store = LockStore(data_root)
        if damaged := ", ".join(str(path) for path in store.damaged()):
            raise StalenessError(
                f"{damaged}: found a damaged record, so nobody can tell what it refers to. Run "
                "its node, or remove the file, before versions are removed."
            )
        locks = _trim_locks(store, known_nodes, keep_runs, dry_run)
        outputs = [output for lock in locks for run in lock.runs for output in run.outputs.values()]
        keep = {output.version for output in outputs if output.version is not None}
        keep |= {lock.attempt for lock in locks if lock.attempt is not None}
        removed = []
        for root in find_roots(data_root):
            removed += artifacts.collect_garbage(root, keep, dry_run)
        removed += OutputStore.collect_garbage(
            data_root, {output.digest for output in outputs}, dry_run
        )
        fingerprints = {run.fingerprint for lock in locks for run in lock.runs}
        return removed + History(data_root).collect_garbage(fingerprints, keep_runs, dry_run)


def verify(data_root: Path, deep: bool = False) -> list[Problem]:
    """Compares every version of every artifact with its manifest, and looks at the records.

    Args:
        data_root: the environment's folder.
        deep: hashes every file anew, whatever is remembered.

    Returns:
        The differences; empty when all is whole.
    """
    damaged = [
        Problem(str(path), "this record of a node's runs is damaged; the node will run again.")
        for path in LockStore(data_root).damaged()
    ]
    damaged += [
        Problem(str(path), "this record of a run is damaged; `runs` leaves it out.")
        for path in History(data_root).damaged()
    ]
    return damaged + [
        problem for root in find_roots(data_root) for problem in _verify_root(root, deep)
    ]


def find_roots(data_root: Path) -> list[Path]:
    """Every artifact root below a folder, whether the catalog still names it or not."""
    roots = []
    for directory, folders, files in os.walk(data_root):
        marks = {artifacts.CURRENT, artifacts.STAGING, artifacts.WORK, artifacts.PARTS}
        if marks & {*files, *folders} or _holds_versions(Path(directory)):
            roots.append(Path(directory))
            folders.clear()
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
    return roots


def as_json(value: Any) -> Any:
    """A result of this module as JSON values."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    content = asdict(value)
    return {name: str(item) if isinstance(item, Path) else item for name, item in content.items()}


def _ordered(planner: Planner, nodes: Collection[str]) -> list[str]:
    for node in nodes:
        planner.graph.node(node)
    return [node.name for node in planner.graph.nodes if node.name in nodes]


def _accept(planner: Planner, verdict: Verdict) -> None:
    """Records that a node's outputs are what it would make now; of a fresh node that is known."""
    node = verdict.node
    if verdict.action is Action.SKIP:
        return
    if verdict.action is not Action.RUN:
        raise StalenessError(
            f"{node}: found outputs in place that are not what it would make, but the next run "
            "has those at hand and puts them in place without running it: there is nothing to "
            "accept."
        )
    if verdict.fingerprint is None:
        first = [reason.name for reason in verdict.reasons if reason.cause is Cause.UPSTREAM]
        raise StalenessError(
            f"{node}: its inputs are not known before these nodes have run: "
            f"{', '.join(first)}. Run or accept them first."
        )
    now = datetime.datetime.now(datetime.UTC).isoformat()
    run = RunRecord(
        verdict.fingerprint.digest,
        verdict.fingerprint.components,
        _vouch_for_outputs(planner, node),
        {"node": node, "accepted_at": now},
    )
    planner.write_lock(planner.lock(node).completed(run, planner.settings.history))


def _row(planner: Planner, verdict: Verdict) -> StatusRow:
    lock = planner.lock(verdict.node)
    head = lock.run(lock.head)
    return StatusRow(
        verdict.node,
        str(verdict.state),
        str(verdict.action),
        tuple(str(reason) for reason in verdict.reasons),
        verdict.is_certain,
        _finished_at(head) if head else None,
        head.provenance.get("seconds") if head else None,
        lock.attempt is not None,
    )


def _describe_run(run: RunRecord, lock: NodeLock) -> dict[str, Any]:
    return {
        "fingerprint": run.fingerprint,
        "finished_at": _finished_at(run),
        "in_place": run.fingerprint == lock.head,
        "accepted": "accepted_at" in run.provenance,
        "seconds": run.provenance.get("seconds"),
    }


def _finished_at(run: RunRecord) -> str | None:
    return run.provenance.get("accepted_at") or run.provenance.get("finished_at")


def _vouch_for_outputs(planner: Planner, node: str) -> dict[str, OutputRecord]:
    """Records what is in place, if it is whole and what the node last wrote."""
    latest = planner.lock(node).latest
    outputs = {}
    for output in planner.datasets(planner.graph.node(node).outputs):
        problems = [] if planner.outputs.exists(output) else ["missing"]
        if not problems:
            outputs[output.name] = planner.outputs.record(output)
            problems = planner.outputs.problems(output, outputs[output.name])
        if not problems and latest is not None and output.name in latest.outputs:
            problems = planner.outputs.problems(output, latest.outputs[output.name])
        if problems:
            raise StalenessError(
                f"{node}: found its output {output.name} not as it was written "
                f"({'; '.join(problems)}). Run the node instead of accepting it."
            )
    return outputs


def _trim_locks(
    store: LockStore, known_nodes: Collection[str] | None, keep_runs: int, dry_run: bool
) -> list[NodeLock]:
    kept = []
    for lock in store.all():
        if known_nodes is not None and lock.node not in known_nodes:
            if not dry_run:
                store.forget(lock.node)
            continue
        newest = lock.runs[max(0, len(lock.runs) - keep_runs) :]
        head = lock.run(lock.head)
        runs = newest if head is None or head in newest else (head, *newest)
        trimmed = replace(lock, runs=runs)
        if not dry_run and trimmed != lock:
            store.write(trimmed)
        kept.append(trimmed)
    return kept


def _holds_versions(directory: Path) -> bool:
    """Whether a folder that has lost everything else of an artifact is the root of one."""
    return any((path / MANIFEST).is_file() for path in artifacts.version_folders(directory))


def _verify_root(root: Path, deep: bool) -> Iterator[Problem]:
    name = artifacts.current_name(root)
    found = {artifact.path.name: artifact for artifact in artifacts.versions(root)}
    folders = artifacts.version_folders(root)
    if name is None and folders:
        names = ", ".join(folder.name for folder in folders)
        yield Problem(
            str(root / artifacts.CURRENT),
            f"missing or damaged; it names the version in use, one of {names}. A run writes it.",
        )
    if name is not None and name not in found:
        yield Problem(str(root / artifacts.CURRENT), f"names {name}, which is missing or damaged.")
    for path in folders:
        artifact = found.get(path.name)
        if artifact is None:
            yield Problem(str(path), "its manifest is missing or damaged.")
            continue
        for text in artifacts.verify(artifact, deep):
            yield Problem(str(path), text)
