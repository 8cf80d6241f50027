"""The verdict on every node of a pipeline, looking ahead over nodes that will run first."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from kedro_rerun.components import ComponentReader, Settings
from kedro_rerun.files import hash_json
from kedro_rerun.fingerprint import Cause, Fingerprint
from kedro_rerun.graph import UNKNOWN, Dataset, Graph, StaleNode, Storage, bare
from kedro_rerun.hash_cache import HashCache
from kedro_rerun.locks import LockStore, NodeLock, RunRecord
from kedro_rerun.outputs import OutputStore
from kedro_rerun.parameters import diff
from kedro_rerun.run_lock import STATE_FOLDER
from kedro_rerun.shared_cache import CachedRun, SharedCache
from kedro_rerun.verdict import (
    Action,
    Reason,
    Root,
    State,
    Verdict,
    changes_since,
    explain_change,
    judge,
    state_of,
)

SHOWS_LINEAGE = "shows_lineage"
"""Tag of nodes that get to know whether what they read is of one lineage."""
_CACHE = "cache"
_NAMES_OF_A_WAY = 3
"""Shown at either end of a way through code that is longer than two times as many."""


class Planner:
    """Judges the nodes of one pipeline in one environment.

    Args:
        graph: nodes in an order in which they can run, with their datasets.
        data_root: the environment's folder.
        settings: what the project declares.
        cache: outputs that other machines share.
        returns: whether somebody takes what the run returns: results in memory that no node
            reads. From the command line nobody does.
    """

    def __init__(
        self,
        graph: Graph,
        data_root: Path,
        settings: Settings,
        *,
        cache: SharedCache | None = None,
        returns: bool = False,
    ) -> None:
        self.cache = cache
        self._returns = returns
        self.graph = graph
        self.data_root = data_root
        self.settings = settings
        self.locks = LockStore(data_root)
        cache_folder = data_root / STATE_FOLDER / _CACHE
        self.hashes = HashCache(cache_folder / "hashes.json")
        self.outputs = OutputStore(data_root, self.hashes, settings.max_stored_bytes)
        self.reader = ComponentReader(graph, settings, self.outputs, cache_folder)
        self._known_locks: dict[str, NodeLock] = {}
        self._known_roots: dict[tuple[str, str | None, str | None], list[Root]] = {}

    def plan(self, done: Collection[str] = ()) -> dict[str, Verdict]:
        """Judges every node, in an order in which they can run.

        Args:
            done: nodes that this process has run, whose results in memory still exist.

        Returns:
            Verdict by node. A node after one that will run is stale because of it, as its
            inputs are unknown until then.
        """
        digests: dict[str, str | None] = {}
        verdicts: dict[str, Verdict] = {}
        self._known_roots = {}
        for node in self.graph.nodes:
            verdict = self._tell_ways(node, self._judge(node, digests))
            verdict = replace(verdict, roots=self._roots(node, verdict, verdicts))
            if node.name in done:
                verdict = replace(verdict, state=State.FRESH, action=Action.SKIP, reasons=())
            verdicts[node.name] = verdict
            for output in node.outputs:
                digests[bare(output)] = self._predict(node, output, verdict)
        return self._run_for_memory(verdicts, done)

    def lock(self, node: str) -> NodeLock:
        """The node's record."""
        if node not in self._known_locks:
            self._known_locks[node] = self.locks.read(node)
        return self._known_locks[node]

    def write_lock(self, lock: NodeLock) -> None:
        """Replaces the node's record."""
        self.locks.write(lock)
        self._known_locks[lock.node] = lock

    def datasets(self, names: Collection[str]) -> list[Dataset]:
        """Datasets by their names."""
        return [self.graph.datasets[name] for name in names]

    def save_caches(self) -> None:
        """Keeps what was read for the next process."""
        self.hashes.save()
        self.reader.save()

    def _judge(self, node: StaleNode, predicted: Mapping[str, str | None]) -> Verdict:
        inputs = self.reader.inputs(node, predicted)
        known = {name: digest for name, digest in inputs.items() if digest is not None}
        if len(known) < len(inputs):
            return self._judge_pending(node, known, sorted(inputs.keys() - known.keys()))
        lineage = self._lineage(node, known, predicted)
        components = {**self.reader.components(node, known), **lineage}
        fingerprint = Fingerprint(components)
        outputs = self.datasets(node.outputs)
        verdict = judge(node.name, fingerprint, self.lock(node.name), outputs, self.outputs)
        always = _reasons_to_run_always(known)
        if always:
            is_told = verdict.action is Action.RUN
            reasons = verdict.reasons if is_told else always
            state = verdict.state if is_told else State.STALE
            return replace(verdict, state=state, action=Action.RUN, reasons=reasons)
        if verdict.action is Action.RUN and self.shared_run(node, fingerprint.digest) is not None:
            return replace(verdict, state=State.FRESH, action=Action.FETCH, reasons=())
        return verdict

    def mixed(
        self,
        node: StaleNode,
        inputs: Mapping[str, str],
        foreseen: Mapping[str, str | None] | None = None,
    ) -> list[str]:
        """What a node reads of more than one lineage, if it is one that shows it.

        Args:
            node: the node.
            inputs: digests of what it reads, by component name.
            foreseen: digests of what the nodes before it will have in place, by bare name.
        """
        from kedro_rerun.lineage import Lineage

        if SHOWS_LINEAGE not in node.tags:
            return []
        read = {_dataset(name): digest for name, digest in inputs.items()}
        return Lineage(self.locks.all(), foreseen).mixed(read)

    def _lineage(
        self, node: StaleNode, known: Mapping[str, str], foreseen: Mapping[str, str | None]
    ) -> dict[str, str]:
        """A component of a page that says what is mixed: it is made anew once nothing is."""
        mixed = self.mixed(node, known, foreseen)
        return {f"{Cause.INPUT}:(mixed lineages)": hash_json(mixed)} if mixed else {}

    def shared_run(self, node: StaleNode, fingerprint: str) -> CachedRun | None:
        """The run in the shared cache from which a node's outputs can be taken."""
        shared = self.cache.find(fingerprint) if self.cache is not None else None
        if shared is None or shared.run.outputs.keys() != set(node.outputs):
            return None
        for output in self.datasets(node.outputs):
            record = shared.run.outputs[output.name]
            if output.storage is Storage.ARTIFACT and record.version is None:
                return None
            is_elsewhere = output.name not in shared.files and output.storage is not Storage.MEMORY
            if is_elsewhere and self.outputs.problems(output, record):
                return None
        return shared

    def _judge_pending(
        self, node: StaleNode, known: Mapping[str, str], pending: list[str]
    ) -> Verdict:
        lock = self.lock(node.name)
        latest = lock.latest.components if lock.latest else {}
        # Unknown inputs are taken as unchanged, so that other changes still show.
        assumed = {name: latest.get(name, UNKNOWN) for name in pending}
        components = self.reader.components(node, {**known, **assumed})
        reasons = changes_since(lock, components)
        producers = {self.graph.producers[bare(_dataset(name))].name for name in pending}
        reasons += [Reason(Cause.UPSTREAM, name, "runs first") for name in sorted(producers)]
        state = state_of(self.datasets(node.outputs), self.outputs)
        told = {name: text for name, text in components.items() if name not in assumed}
        return Verdict(node.name, state, Action.RUN, tuple(reasons), known=told)

    def _tell_ways(self, node: StaleNode, verdict: Verdict) -> Verdict:
        """Adds to each reason that is code how the node comes to reach it."""
        reasons = []
        for reason in verdict.reasons:
            way = self.reader.way_to(node, reason.name) if reason.cause is Cause.CODE else []
            if len(way) > 2 * _NAMES_OF_A_WAY:
                way = [*way[:_NAMES_OF_A_WAY], "...", *way[-_NAMES_OF_A_WAY:]]
            told = f"{reason.detail}, reached by {' > '.join(way)}"
            reasons.append(replace(reason, detail=told) if way else reason)
        return replace(verdict, reasons=tuple(reasons))

    # What reasons go back to

    def _roots(
        self, node: StaleNode, verdict: Verdict, before: Mapping[str, Verdict]
    ) -> tuple[Root, ...]:
        """Follows reasons back through the nodes before, each root once.

        Args:
            node: whose reasons they are.
            verdict: its verdict.
            before: verdicts of the nodes before it.
        """
        latest = self.lock(node.name).latest
        roots: dict[Root, None] = {}
        for reason in verdict.reasons:
            if reason.cause is Cause.UPSTREAM:
                roots |= dict.fromkeys(before[reason.name].roots)
            elif reason.cause is Cause.INPUT and latest and verdict.fingerprint:
                name = f"{Cause.INPUT}:{reason.name}"
                change = latest.components.get(name), verdict.fingerprint.components.get(name)
                found = self._roots_of_input(reason.name, *change, before)
                roots |= dict.fromkeys(found or [Root(node.name, reason)])
            else:
                roots[Root(node.name, reason)] = None
        return tuple(roots)

    def _roots_of_input(
        self, name: str, was: str | None, now: str | None, before: Mapping[str, Verdict]
    ) -> list[Root]:
        """What made a dataset another one, by the records of the node that makes it.

        Where several runs gave the same content, two that differ in code and libraries alone show
        that no other change was needed.

        Returns:
            Nothing where no remembered runs tell.
        """
        key = (bare(name), was, now)
        if key not in self._known_roots:
            self._known_roots[key] = []
            producer = self.graph.producers.get(bare(name))
            if producer is not None and was is not None and now is not None:
                self._known_roots[key] = self._roots_of_made(producer, key, before)
        return self._known_roots[key]

    def _roots_of_made(
        self,
        producer: StaleNode,
        key: tuple[str, str | None, str | None],
        before: Mapping[str, Verdict],
    ) -> list[Root]:
        name, was, now = key
        runs, verdict = self.lock(producer.name).runs[::-1], before.get(producer.name)
        made = [run.components for run in runs if _made(run, name, now)]
        if verdict and verdict.fingerprint and now == _made_by(verdict.fingerprint.digest):
            made.append(verdict.fingerprint.components)
        found: list[list[Root]] = []
        for earlier in (run for run in runs if _made(run, name, was)):
            for components in made:
                roots: dict[Root, None] = {}
                for change in diff(earlier.components, components):
                    reason = explain_change(change)
                    given = (
                        self._roots_of_input(reason.name, change.before, change.after, before)
                        if reason.cause is Cause.INPUT
                        else []
                    )
                    roots |= dict.fromkeys(given or [Root(producer.name, reason)])
                found.append(list(roots))
        return min(
            filter(None, found),
            key=lambda roots: not all(root.may_alter_nothing for root in roots),
            default=[],
        )

    def _predict(self, node: StaleNode, output: str, verdict: Verdict) -> str | None:
        if verdict.fingerprint is None:
            return None
        if self.graph.datasets[output].storage in (Storage.MEMORY, Storage.OPAQUE):
            # Its content cannot be compared, so what it is made from stands for it.
            if UNKNOWN in verdict.fingerprint.of(Cause.INPUT).values():
                return UNKNOWN
            return _made_by(verdict.fingerprint.digest)
        if verdict.action is Action.RUN:
            return None
        run = self.lock(node.name).run(verdict.fingerprint.digest)
        if verdict.action is Action.FETCH:
            shared = self.shared_run(node, verdict.fingerprint.digest)
            run = shared.run if shared is not None else None
        assert run is not None, "only recorded runs are fresh"
        return run.outputs[output].digest

    def _run_for_memory(
        self, verdicts: dict[str, Verdict], done: Collection[str]
    ) -> dict[str, Verdict]:
        """Lets fresh nodes run whose results in memory are asked for, last nodes first."""
        for node in reversed(self.graph.nodes):
            verdict = verdicts[node.name]
            if verdict.action is Action.RUN or node.name in done:
                continue
            for output in self.datasets(node.outputs):
                if output.storage is not Storage.MEMORY:
                    continue
                readers = [
                    reader.name for reader in self.graph.consumers.get(bare(output.name), [])
                ]
                running = [name for name in readers if verdicts[name].action is Action.RUN]
                if running or (self._returns and not readers):
                    asker = f"needed by {running[0]}" if running else "returned by the run"
                    reason = Reason(Cause.MEMORY, output.name, f"kept in memory only, {asker}")
                    verdicts[node.name] = replace(verdict, action=Action.RUN, reasons=(reason,))
        return verdicts


def _made_by(fingerprint: str) -> str:
    return f"made by {fingerprint}"


def _made(run: RunRecord, dataset: str, digest: str | None) -> bool:
    """Whether a run gave a dataset this content."""
    outputs = {bare(name): output for name, output in run.outputs.items()}
    output = outputs.get(bare(dataset))
    return digest == _made_by(run.fingerprint) or (output is not None and output.digest == digest)


def _reasons_to_run_always(inputs: Mapping[str, str]) -> tuple[Reason, ...]:
    return tuple(
        Reason(Cause.INPUT, _dataset(name), "gives no digest (add a method content_digest)")
        for name, digest in inputs.items()
        if digest == UNKNOWN
    )


def _dataset(component: str) -> str:
    return component.removeprefix(f"{Cause.INPUT}:")
