"""Carries out the runs of a grid, each as an ordinary run of the project.

What runs have in common is made once. Everything before the pre-training (records, shards,
encoders) is made in one data root, one variant after the other. Runs of the same pre-training
share a data root of their own, a lane, which gets what was prepared as links; lanes work at the
same time, and a run that only fine-tunes finds its lane's model. A killed grid goes on where it
was: finished runs are found by their identity, unfinished ones resume in their lane.

    <data>/prepared/            what comes before pre-training, of every arm
    <data>/lanes/<identity>/    pre-training, fine-tuning, evaluation
    <data>/results/<identity>/  what is kept of each finished run
    <data>/logs/, conf/         by arm and seed
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_pipeline.config.lab import ExecutionConfig
from mm1_pipeline.ground.files import whole_folder
from mm1_pipeline.ground.formatting import duration
from mm1_pipeline.lab.grid import ENVIRONMENT, ArmRun, write_conf
from mm1_pipeline.lab.identity import Identity, IdentityReader, RunScopes, Scope
from mm1_pipeline.lab.results import collect_results, read_json
from mm1_pipeline.lab.store import MADE_FROM, RUN, RunStore, describe
from mm1_pipeline.lab.workers import (
    Processes,
    RunFailedError,
    machine_shares,
    num_cores,
    visible_gpus,
)
from mm1_pipeline.staleness.cloning import clone_data_root

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a grid runs.

    Attributes:
        project: Root of the Kedro project, with `conf`.
        data: Of all arms; kept between grids.
        output_dir: Gets `<arm>/seed<seed>/` with the results of each run.
        about: What is noted of every run: commit, device.
        scopes_of: Reads the parts of a run anew, to see code that was edited meanwhile.
    """

    project: Path
    data: Path
    output_dir: Path
    about: dict[str, Any] = field(default_factory=dict)
    scopes_of: Callable[[ArmRun], RunScopes] | None = None

    @property
    def prepared(self) -> Path:
        """Data root of what comes before pre-training."""
        return self.data / "prepared"


@dataclass(frozen=True)
class PlannedRun:
    """A run, and what its parts are made from.

    Attributes:
        run: The arm and seed.
        scopes: Its parts.
        prepared: What comes before pre-training is made from.
        pretrained: What the pre-trained model is made from; names the lane.
        whole: What the result is made from.
    """

    run: ArmRun
    scopes: RunScopes
    prepared: Identity
    pretrained: Identity
    whole: Identity

    @property
    def name(self) -> str:
        """`<arm>/seed<seed>`."""
        return self.run.name

    def lane(self, place: Place) -> Path:
        """Its data root."""
        return place.data / "lanes" / self.pretrained.digest

    def results(self, place: Place) -> Path:
        """What is kept of it."""
        return place.data / "results" / self.whole.digest


def plan_runs(
    runs: Sequence[ArmRun], scopes_of: Callable[[ArmRun], RunScopes], reader: IdentityReader
) -> list[PlannedRun]:
    """Finds out what every run is made from.

    Args:
        runs: From `lab.grid.resolve_arms`.
        scopes_of: The parts of a run's pipeline.
        reader: Reads raw data.
    """
    planned = []
    for run in runs:
        scopes = scopes_of(run)
        prepared, pretrained, whole = (
            reader.read(scope, run.groups)
            for scope in (scopes.prepared, scopes.pretrained, scopes.whole)
        )
        planned.append(PlannedRun(run, scopes, prepared, pretrained, whole))
    reader.save()
    return planned


def run_grid(config: ExecutionConfig, runs: Sequence[PlannedRun], place: Place) -> dict[str, Any]:
    """Runs every arm that has no result yet, and gathers all results.

    An arm that fails does not stop the others.

    Args:
        config: Store and number of runs at once.
        runs: From `plan_runs`.
        place: Where everything lies.

    Returns:
        {"arms": {ARM: {SEED: {"seconds", "commit", "device"}}}}: what each run cost where it was
        made. One whose parts were all there cost seconds.

    Raises:
        RuntimeError: Runs failed; their last lines are in the message, the rest in their logs.
    """
    store = RunStore(Path(config.store), config.any_code) if config.store else None
    todo = [run for run in runs if not _find_results(run, place, store)]
    logger.info("%d of %d runs are there from before.", len(runs) - len(todo), len(runs))
    if todo:
        with Processes() as processes:
            _prepare(todo, place, processes)
            _run_all(config, todo, place, store, processes)
    costs: dict[str, dict[str, Any]] = {}
    for run in runs:
        target = place.output_dir / run.name
        shutil.copytree(run.results(place), target, dirs_exist_ok=True)
        costs.setdefault(run.run.arm, {})[str(run.run.seed)] = read_json(target / RUN)
        for name in (RUN, MADE_FROM):  # Clocks and machines do not belong in an artifact.
            (target / name).unlink()
    return {"arms": costs}


def _find_results(run: PlannedRun, place: Place, store: RunStore | None) -> bool:
    """Whether a run's results are there, here or in the store, which both then have."""
    results = run.results(place)
    if not (results / RUN).is_file():
        stored = store.find(run.name, run.whole) if store else None
        if store is None or stored is None:
            return False
        with whole_folder(results) as fresh:
            store.unpack(stored, fresh)
        logger.info("%s: taken from %s.", run.name, store.folder)
    elif store and not store.has(run.name, run.whole):
        store.put(run.name, results)
    return True


def _prepare(runs: Sequence[PlannedRun], place: Place, processes: Processes) -> None:
    """Makes what comes before pre-training, each variant once, and gives it to the lanes."""
    variants: dict[str, list[PlannedRun]] = {}
    for run in runs:
        variants.setdefault(run.prepared.digest, []).append(run)
    for number, (digest, members) in enumerate(variants.items(), start=1):
        lanes = {run.lane(place) / f".prepared-{digest}": run.lane(place) for run in members}
        missing = {marker: lane for marker, lane in lanes.items() if not marker.exists()}
        if not missing:
            continue
        names = ", ".join(dict.fromkeys(run.run.arm for run in members))
        logger.info("Preparing %d of %d, for %s.", number, len(variants), names)
        first = members[0]
        name, nodes = f"prepare-{digest}", first.scopes.prepared
        try:
            _kedro(first.run, name, place.prepared, place, processes, {}, nodes)
        except RunFailedError as error:
            raise RunFailedError(f"Preparing {names} {error}") from None
        for marker, lane in missing.items():
            clone_data_root(place.prepared, lane)
            marker.touch()


def _run_all(
    config: ExecutionConfig,
    todo: Sequence[PlannedRun],
    place: Place,
    store: RunStore | None,
    processes: Processes,
) -> None:
    """Runs all, as many at once as there are workers; no two of the same lane at once."""
    num_workers = min(config.num_workers, len(todo))
    gpus = visible_gpus() if num_workers > 1 else []
    free = machine_shares(num_workers, num_cores=num_cores(), gpus=gpus)
    pending, failed = list(todo), []
    running: dict[Future[None], tuple[PlannedRun, dict[str, str]]] = {}
    begun, num_done = time.monotonic(), 0
    with _leaving(ThreadPoolExecutor(num_workers), processes) as pool:
        while pending or running:
            for run in _startable(pending, [run for run, _ in running.values()], place, len(free)):
                pending.remove(run)
                share = free.pop()
                logger.info("%s starts.", run.name)
                running[pool.submit(_run_arm, run, place, processes, share)] = (run, share)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, share = running.pop(future)
                free.append(share)
                num_done += 1
                if error := future.exception():
                    if not isinstance(error, RunFailedError):
                        raise error
                    logger.error("%s failed; the other runs go on.", run.name)
                    failed.append(f"{run.name} {error}")
                    continue
                if store:
                    store.put(run.name, run.results(place))
                per_run = (time.monotonic() - begun) / num_done
                logger.info(
                    "%s: run %d of %d done, about %s a run, ETA %s",
                    run.name,
                    num_done,
                    len(todo),
                    duration(per_run),
                    duration((len(todo) - num_done) * per_run),
                )
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(todo)} runs failed; the grid goes on from here when it is run "
            "again.\n\n" + "\n\n".join(failed)
        )


def _startable(
    pending: Sequence[PlannedRun], running: Sequence[PlannedRun], place: Place, num_free: int
) -> Iterator[PlannedRun]:
    """The first runs whose lanes are free."""
    busy = {run.lane(place) for run in running}
    for run in list(pending):
        if num_free and run.lane(place) not in busy:
            busy.add(run.lane(place))
            num_free -= 1
            yield run


@contextlib.contextmanager
def _leaving(pool: ThreadPoolExecutor, processes: Processes) -> Iterator[ThreadPoolExecutor]:
    """A pool that, left by an error, ends its processes before it waits for its threads."""
    with pool:
        try:
            yield pool
        except BaseException:
            processes.end()
            raise


def _run_arm(run: PlannedRun, place: Place, processes: Processes, share: dict[str, str]) -> None:
    if place.scopes_of and place.scopes_of(run.run).whole != run.scopes.whole:
        raise RuntimeError(
            f"{run.name}: the code changed since the grid started, so what would run is not what "
            "the other arms ran. Give the same command again; what other code made counts as "
            "another run."
        )
    begun, lane = time.monotonic(), run.lane(place)
    _kedro(run.run, run.name, lane, place, processes, share)
    with whole_folder(run.results(place)) as fresh:
        collect_results(run.run.goal, run.run.parameters, lane, fresh)
        seconds = round(time.monotonic() - begun, 1)
        about = {"arm": run.run.arm, "seed": run.run.seed, "goal": run.run.goal.value}
        describe(fresh, run.whole, {**about, **place.about, "seconds": seconds})


def _kedro(
    run: ArmRun,
    name: str,
    data_root: Path,
    place: Place,
    processes: Processes,
    share: dict[str, str],
    until: Scope | None = None,
) -> None:
    """Runs an arm's goal, or as far as some nodes, in a data root."""
    conf = place.data / "conf" / name
    write_conf(run, place.project, data_root, conf)
    command = [
        *(sys.executable, "-m", "mm1_pipeline", "run", f"--pipeline={run.goal.value}"),
        *(f"--env={ENVIRONMENT}", f"--conf-source={conf}", "--params=allow_expensive=true"),
        *([f"--to-nodes={','.join(until.nodes)}"] if until else []),
    ]
    processes.run(command, place.project, place.data / "logs" / f"{name}.log", share)
