"""Kedro's sequential runner, which leaves out nodes whose outputs are what they would make."""

from __future__ import annotations

import errno
import logging
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from kedro.runner.task import Task
from pluggy import PluginManager

from kedro_rerun import artifacts
from kedro_rerun.components import Settings
from kedro_rerun.context import BuildContext, building
from kedro_rerun.errors import StalenessError, is_mended_by_user, without_secrets
from kedro_rerun.expensive import EXPENSIVE, ExpensiveNodeError, explain_refusal
from kedro_rerun.files import hash_json, remove_temporaries
from kedro_rerun.fingerprint import Cause, Fingerprint
from kedro_rerun.forecast import forecast
from kedro_rerun.graph import Graph, StaleNode, Storage
from kedro_rerun.history import NodeOutcome, RunLog, format_time, recording
from kedro_rerun.kedro_graph import build_graph
from kedro_rerun.lineage import stale_inputs, told
from kedro_rerun.locks import SWEEP, RunRecord
from kedro_rerun.planning import Planner
from kedro_rerun.preflight import PreflightError, concerning, refusal
from kedro_rerun.run_lock import STATE_FOLDER, WhenBusy, hold_run_lock
from kedro_rerun.shared_cache import CachedFile, SharedCache, share
from kedro_rerun.verdict import Action, Reason, Verdict, summarize

LOGGER = "kedro.rerun"
ALLOW_EXPENSIVE = "params:allow_expensive"
WHEN_BUSY = "params:when_busy"
_ALMOST_NOTHING = 1_000_000
"""Bytes; a disk with fewer is full, as files are written in larger blocks."""


@dataclass(frozen=True)
class RunOptions:
    """What a run needs to know beyond Kedro's pipeline and catalog."""

    data_root: Path
    settings: Settings
    force: bool = False
    """Runs every node, fresh or not."""
    returns: bool = True
    """Whether somebody takes what the run returns; see `Planner`."""
    cache: SharedCache | None = None
    """Outputs are taken from here, and given to it."""
    provenance: Mapping[str, Any] | None = None
    """Goes into manifests and records: environment, commit."""
    earlier: Callable[[Pipeline], Earlier | None] = lambda _: None
    """Tells of the nodes before those of a run; None where there are none."""


@dataclass(frozen=True)
class Earlier:
    """Nodes whose outputs a run reads without running them."""

    graph: Graph
    read: frozenset[str]
    """Datasets that the run reads of theirs."""
    command: str
    """Runs some nodes, before their names."""


class StalenessRunner(SequentialRunner):
    """Runs the stale nodes of a pipeline one after the other.

    Args:
        options: gives the options; asked when the run starts.
        is_async: loads and saves with threads, as Kedro's runner.
    """

    def __init__(self, options: Callable[[], RunOptions], is_async: bool = False) -> None:
        super().__init__(is_async=is_async)
        self._options = options

    @property
    def _logger(self) -> logging.Logger:
        # Below `kedro`, whose lines are shown wherever a project configures no logging of its own.
        return logging.getLogger(LOGGER)

    def __repr__(self) -> str:
        # Kedro-Viz records run status only for runners that look like this one.
        return f"<kedro.runner.sequential_runner.SequentialRunner object ({type(self).__name__})>"

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        options = self._options()
        _refuse_mistakes(pipeline, catalog, options)
        when_busy = WhenBusy(_switch(catalog, WHEN_BUSY, WhenBusy.WAIT))
        with hold_run_lock(options.data_root, when_busy, self._logger.warning):
            run = _Run(self, pipeline, catalog, hook_manager, run_id, options)
            try:
                run.execute()
            except Exception as error:
                if _is_full_disk(error, options.data_root):
                    raise StalenessError(_explain_full_disk(error, options)) from error
                raise
            finally:
                run.planner.save_caches()


class _Run:
    """One run under the lock of its data root."""

    def __init__(
        self,
        runner: StalenessRunner,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: PluginManager | None,
        run_id: str | None,
        options: RunOptions,
    ) -> None:
        self._runner = runner
        self._pipeline = pipeline
        self._catalog = catalog
        self._hook_manager = hook_manager
        self._run_id = run_id
        self._options = options
        self._log = runner._logger
        self._done: set[str] = set()
        graph = build_graph(pipeline, catalog)
        self.planner = Planner(
            graph,
            options.data_root,
            options.settings,
            cache=None if options.force else options.cache,
            returns=options.returns,
        )
        self._loads = Counter(name for node in pipeline.nodes for name in node.inputs)

    def execute(self) -> None:
        """Runs what must run."""
        self._clean()
        num_stale = self._look_at_earlier()
        plan = self._plan()
        # Each node's code is read again before it runs: only what changed since is parsed again,
        # and nothing is after a kill.
        self.planner.save_caches()
        self._refuse_expensive(plan.values())
        self._log.info("%s", forecast(plan, self.planner.lock))
        options = self._options
        with recording(self.planner, plan, options.settings, options.provenance or {}) as record:
            ran = self._run_all(plan, record)
        fresh = "were fresh"
        if num_stale:
            fresh = f"are as what they read is, of which {num_stale} datasets are stale: see above"
        self._log.info("Ran %d of %d nodes; the others %s.", ran, len(plan), fresh)

    def _run_all(self, plan: dict[str, Verdict], record: RunLog) -> int:
        """Does with each node what the plan says; how many ran."""
        ran = 0
        for node in self._pipeline.nodes:
            view = self.planner.graph.node(node.name)
            if plan[node.name].action is Action.FETCH and not self._fetch(view, plan[node.name]):
                plan = self._plan()
            verdict = plan[node.name]
            if verdict.action is Action.SKIP:
                record.note(verdict, NodeOutcome.FRESH)
                self._log.info("Skipped %s: fresh.", node.name)
            elif verdict.action is Action.ACTIVATE:
                self._activate(view, verdict)
                record.note(verdict, NodeOutcome.PUT_BACK)
                self._log.info("Skipped %s: put back the outputs of an earlier run.", node.name)
            elif verdict.action is Action.FETCH:
                record.note(verdict, NodeOutcome.FETCHED)
                self._log.info("Skipped %s: took its outputs from the cache.", node.name)
            else:
                self._refuse_expensive([verdict])
                begun = time.monotonic()
                with record.timing(verdict):
                    self._run_node(node, view, verdict)
                self._log.info("Finished %s in %.1f s.", node.name, time.monotonic() - begun)
                ran += 1
            self._done.add(node.name)
            if verdict.action is not Action.SKIP:
                plan = self._plan()
            self._runner._release_datasets(node, self._catalog, self._loads, self._pipeline)
        return ran

    def _look_at_earlier(self) -> int:
        """Says what the run reads of nodes that it leaves out, and that is not fresh; how much."""
        options = self._options
        what = options.settings.stale_inputs
        earlier = options.earlier(self._pipeline) if what != "ignore" else None
        if earlier is None:
            return 0
        planner = Planner(earlier.graph, options.data_root, options.settings, cache=options.cache)
        found = stale_inputs(planner, earlier.read)
        planner.save_caches()
        if not found:
            return 0
        nodes = ",".join(dict.fromkeys(item.node for item in found))
        text = told(found, f"{earlier.command} --to-nodes={shlex.quote(nodes)}")
        if what == "refuse":
            raise StalenessError(f"{text}\nThe project's settings (stale_inputs) refuse such runs.")
        if absent := [item.dataset for item in found if not item.exists]:
            raise StalenessError(f"{text}\nNone was run, as there is no {', '.join(absent)}.")
        self._log.warning("%s", text)
        return len(found)

    def _plan(self) -> dict[str, Verdict]:
        plan = self.planner.plan(self._done)
        if not self._options.force:
            return plan
        forced = (Reason(Cause.FORCED, "", "asked to run without skipping"),)
        return {
            name: replace(verdict, action=Action.RUN, reasons=verdict.reasons or forced)
            for name, verdict in plan.items()
        }

    def _clean(self) -> None:
        """Clears what killed runs left; nobody else works here while the lock is held."""
        state = self._options.data_root / STATE_FOLDER
        for folder in (state, *(path for path in state.iterdir() if path.is_dir())):
            remove_temporaries(folder)
        graph = self.planner.graph
        for dataset in graph.datasets.values():
            if dataset.storage is Storage.ARTIFACT:
                self._check_root(dataset.name, dataset.path)
                artifacts.sweep(dataset.path)
        for node in graph.nodes:
            lock = self.planner.lock(node.name)
            finished = [run for run in lock.runs if run.fingerprint != lock.attempt]
            for dataset in self.planner.datasets(node.outputs):
                if dataset.storage is Storage.PATH and dataset.is_local:
                    remove_temporaries(dataset.path.parent, dataset.path.name)
                elif dataset.storage is Storage.ARTIFACT:
                    for run in finished:
                        artifacts.Workspace(dataset.path, run.fingerprint).discard_work()

    def _check_root(self, name: str, root: Path) -> None:
        data_root = self._options.data_root.resolve()
        if not root.resolve().is_relative_to(data_root):
            raise StalenessError(
                f"{name}: found the artifact root {root}, expected a folder below {data_root}. "
                "Environments that share artifacts would overwrite each other's; change the path "
                "in the catalog."
            )

    def _refuse_expensive(self, verdicts: Any) -> None:
        """Asks about expensive nodes whose inputs are known, so that they can be accepted too.

        The others are asked about when the nodes before them have run, which may alter nothing.
        """
        if self._options.force or _switch(self._catalog, ALLOW_EXPENSIVE, False):
            return
        refused = [
            verdict
            for verdict in verdicts
            if verdict.action is Action.RUN
            and verdict.fingerprint is not None
            and verdict.may_alter_nothing
            and EXPENSIVE in self.planner.graph.node(verdict.node).tags
        ]
        if refused:
            raise ExpensiveNodeError(explain_refusal(refused, self._options.settings))

    def _activate(self, node: StaleNode, verdict: Verdict) -> None:
        assert verdict.fingerprint is not None, "only known fingerprints are activated"
        digest = verdict.fingerprint.digest
        lock = self.planner.lock(node.name)
        run = lock.run(digest)
        assert run is not None, "only recorded runs are activated"
        self.planner.write_lock(lock.attempting(digest))
        for output in self.planner.datasets(node.outputs):
            if output.storage is not Storage.MEMORY:
                self.planner.outputs.put_back(output, run.outputs[output.name])
        self.planner.write_lock(lock.activated(digest))

    def _fetch(self, node: StaleNode, verdict: Verdict) -> bool:
        """Takes a node's outputs from the shared cache; False if they are not what they should be.

        The record comes last, so a run that is killed between takes them again.
        """
        assert verdict.fingerprint is not None, "only known fingerprints are found"
        cache, digest = self.planner.cache, verdict.fingerprint.digest
        shared = self.planner.shared_run(node, digest)
        assert cache is not None
        assert shared is not None, "found when it was planned"
        lock = self.planner.lock(node.name)
        self.planner.write_lock(lock.attempting(digest))
        for output in self.planner.datasets(node.outputs):
            record, files = shared.run.outputs[output.name], shared.files.get(output.name)
            if files is None or not self.planner.outputs.problems(output, record):
                if output.storage is Storage.ARTIFACT:
                    self.planner.outputs.put_back(output, record)
                continue

            def fetch(name: str, target: Path, files: Mapping[str, CachedFile] = files) -> bool:
                return cache.fetch(files[name], target)

            if not self.planner.outputs.bring(output, record, fetch, *files):
                cache.forget(digest)
                return False
            if output.storage is Storage.ARTIFACT:
                self.planner.outputs.remember(output)
        origin = {name: told for name, told in shared.run.provenance.items() if name != SWEEP}
        ours = self._options.provenance or {}
        origin |= {"from_cache": True, **{name: ours[name] for name in ours if name == SWEEP}}
        run = replace(shared.run, provenance=origin)
        self.planner.write_lock(lock.completed(run, self._options.settings.history))
        return True

    def _run_node(self, node: Any, view: StaleNode, verdict: Verdict) -> None:
        fingerprint = verdict.fingerprint
        assert fingerprint is not None, "every node before this one has run"
        self._refuse_changed_code(view)
        self._log.info("Running %s: %s", node.name, summarize(verdict.reasons))
        lock = self.planner.lock(node.name)
        self.planner.write_lock(lock.attempting(fingerprint.digest))
        started = time.time()
        origin = self._describe_start(node.name, started)
        context = BuildContext(
            node.name,
            fingerprint.digest,
            {
                output.name: output.path
                for output in self.planner.datasets(view.outputs)
                if output.storage is Storage.ARTIFACT
            },
            {**origin, **_describe_components(fingerprint)},
            tuple(self.planner.mixed(view, _input_digests(fingerprint))),
            making=fingerprint.making,
        )
        with artifacts.keep_work_until_done(), building(context):
            self._execute(node)
            self._record(view, fingerprint, {**origin, **_describe_end(started)})

    def _execute(self, node: Any) -> None:
        kedro_log = logging.getLogger("kedro.pipeline.node")
        kedro_log.addFilter(_is_no_failure)  # Whoever catches the error shows it.
        try:
            Task(
                node=node,
                catalog=self._catalog,
                hook_manager=self._hook_manager,
                is_async=self._runner._is_async,
                run_id=self._run_id,
            ).execute()
        except Exception as error:
            settings = self._options.settings
            if is_mended_by_user(error, settings.user_errors, settings.packages):
                self._log.error("%s failed.", node.name)
            else:
                self._log.error(
                    "%s failed. Give the same command again to go on from here: finished nodes are "
                    "skipped, and a node that keeps its progress, as a training does, resumes.",
                    node.name,
                )
            raise
        finally:
            kedro_log.removeFilter(_is_no_failure)

    def _record(
        self, node: StaleNode, fingerprint: Fingerprint, provenance: dict[str, Any]
    ) -> None:
        outputs = {
            output.name: self.planner.outputs.record(output)
            for output in self.planner.datasets(node.outputs)
        }
        for output in self.planner.datasets(node.outputs):
            if output.storage is Storage.ARTIFACT:
                self.planner.outputs.remember(output)
        if self.planner.reader.external_inputs_changed(node):
            raise StalenessError(
                f"{node.name}: its input files were written to while it ran, so nobody can tell "
                "what its outputs were made from, even if they are as before again. Run it again "
                "when nothing writes to them."
            )
        run = RunRecord(fingerprint.digest, fingerprint.components, outputs, provenance)
        lock = self.planner.lock(node.name)
        self.planner.write_lock(lock.completed(run, self._options.settings.history))
        if self._options.cache is not None:
            share(
                self._options.cache, run, self.planner.datasets(node.outputs), self.planner.outputs
            )

    def _refuse_changed_code(self, node: StaleNode) -> None:
        if self.planner.reader.code_changed(node):
            raise StalenessError(
                f"{node.name}: its code changed since this run started, so what would run is not "
                "what is on disk. Give the same command again; finished nodes are skipped."
            )

    def _describe_start(self, node: str, started: float) -> dict[str, Any]:
        return {
            "node": node,
            "started_at": format_time(started),
            "command": without_secrets(shlex.join(sys.argv)),
            **(self._options.provenance or {}),
        }


def _is_no_failure(record: logging.LogRecord) -> bool:
    return not record.msg.startswith("Node %s failed with error")


def _refuse_mistakes(pipeline: Pipeline, catalog: CatalogProtocol, options: RunOptions) -> None:
    """Before the lock, for which a run may wait for hours."""
    look = options.settings.preflight
    if look is None:
        return
    graph = build_graph(pipeline, catalog)
    planner = Planner(graph, options.data_root, options.settings, cache=options.cache)
    # Who never ran must run. Others are planned, which takes time: a machine without the device of
    # a training that is done can still make what comes after it.
    running = {
        node.name for node in graph.nodes if options.force or not planner.lock(node.name).runs
    }
    is_planned = not running
    if is_planned:
        running = _planned_to_run(planner)
    # Looking takes time too, for libraries and data are opened: not where nothing runs.
    found = list(look(graph)) if running else []
    may_be_fresh = options.cache or any(not item.nodes & running for item in found)
    if found and may_be_fresh and not is_planned and not options.force:
        running = _planned_to_run(planner)
    if texts := concerning(found, running):
        raise PreflightError(refusal(texts))


def _planned_to_run(planner: Planner) -> set[str]:
    return {name for name, verdict in planner.plan().items() if verdict.action is Action.RUN}


def _input_digests(fingerprint: Fingerprint) -> dict[str, str]:
    return {f"{Cause.INPUT}:{name}": text for name, text in fingerprint.of(Cause.INPUT).items()}


def _describe_components(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "code": hash_json(fingerprint.of(Cause.CODE))[:20],
        "parameters": fingerprint.of(Cause.PARAMS),
        "inputs": fingerprint.of(Cause.INPUT),
        "libraries": fingerprint.of(Cause.LIBRARY),
    }


def _describe_end(started: float) -> dict[str, Any]:
    ended = time.time()
    return {"finished_at": format_time(ended), "seconds": round(ended - started, 3)}


def _switch(catalog: CatalogProtocol, name: str, default: Any) -> Any:
    return catalog.load(name) if name in catalog else default


def _is_full_disk(error: Exception, data_root: Path) -> bool:
    """Whether an error goes back to a disk that takes no more; some libraries say no number."""
    chain, found = set[int](), False
    cause: BaseException | None = error
    while cause is not None and id(cause) not in chain:
        chain.add(id(cause))
        if isinstance(cause, OSError):
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                return True
            found = found or cause.errno is None
        cause = cause.__cause__ or cause.__context__
    return found and shutil.disk_usage(data_root).free < _ALMOST_NOTHING


def _explain_full_disk(error: Exception, options: RunOptions) -> str:
    free = shutil.disk_usage(options.data_root).free
    return (
        f"{options.data_root}: found no space left on the disk, {free / 1e6:,.1f} MB ({error}). "
        "Finished nodes and progress stay, and nothing half-written is used. Make room, for "
        f"instance with `{options.settings.command} gc`, and give the same command again."
    )
