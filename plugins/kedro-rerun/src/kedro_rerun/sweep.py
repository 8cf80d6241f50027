"""A grid of parameters: what each setting would run, then one run after the other.

All settings share a data root, so what does not depend on a varied parameter is made once, and what
an earlier setting made is put back rather than made again. Each run is a process of its own
(`python -m kedro_rerun.sweep`): one that dies takes none of the others with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_rerun.errors import StalenessError, unknown_name, without_secrets
from kedro_rerun.files import hash_json
from kedro_rerun.fingerprint import Cause
from kedro_rerun.graph import Storage, bare
from kedro_rerun.history import History, Outcome, PastRun, format_time
from kedro_rerun.locks import SWEEP, LockStore
from kedro_rerun.parameters import dotted
from kedro_rerun.planning import Planner
from kedro_rerun.preflight import concerning
from kedro_rerun.verdict import Action

if TYPE_CHECKING:
    from kedro_rerun.session import StalenessSession

SETTING = "setting"
"""In the provenance of a sweep's run, beside `locks.SWEEP`: its place in the grid."""
OpenSession = Callable[[dict[str, Any]], "StalenessSession"]
_KEY = re.compile(r"\s*([A-Za-z_][\w.\-]*)\s*=(.*)", re.DOTALL)
_ITEM = "  - "
"""Before each of several mistakes in one error."""
_STOPPING_SECONDS = 5.0


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    varied: Mapping[str, str]
    """Text of each varied parameter by path."""
    parameters: Mapping[str, Any]
    """All that `--params` give, nested as a run takes them."""

    def __str__(self) -> str:
        return ", ".join(f"{path}={text}" for path, text in self.varied.items()) or "as it is"


@dataclass(frozen=True)
class PlannedSetting:
    """What a setting would run when those before it have run."""

    setting: Setting
    runs: tuple[str, ...]
    shared: tuple[str, ...]
    """Nodes that a setting before it runs for it."""
    seconds: float
    """How long the nodes took the last time."""
    unknown: int
    """How many of them have never run."""


@dataclass(frozen=True)
class FinishedSetting:
    """What came of a setting."""

    setting: Setting
    run: PastRun | None
    """None where it ended before its first node."""
    error: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether its run went through."""
        return self.run is not None and self.run.outcome == Outcome.DONE


@dataclass
class _Plan:
    """A setting as it would run now."""

    setting: Setting
    keys: dict[str, str] = field(default_factory=dict)
    """What each node would be made from: equal in two settings that share the node's work."""
    stale: list[str] = field(default_factory=list)
    fingerprints: dict[str, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def parse_grid(texts: Sequence[str]) -> list[Setting]:
    """Every combination of the values that are given.

    Args:
        texts: each `path=value,value`, or several such behind each other.

    Raises:
        StalenessError: for a text that gives no parameter, or one that another gives too.
    """
    from omegaconf import OmegaConf

    values: dict[str, list[str]] = {}
    for text in texts:
        path = None
        for piece in _split(text):
            if found := _KEY.fullmatch(piece):
                path, piece = found[1], found[2]
                if path in values:
                    raise StalenessError(f"--params: found {path} twice; give all its values once.")
            if path is None or not piece.strip():
                raise StalenessError(
                    f"--params: found {text!r}, expected a parameter's path and its values, for "
                    "instance train.learning_rate=1e-4,3e-4."
                )
            values.setdefault(path, []).append(piece.strip())
    unique = {path: list(dict.fromkeys(found)) for path, found in values.items()}
    return [
        Setting(
            {
                path: text
                for path, text in zip(unique, chosen, strict=True)
                if len(unique[path]) > 1
            },
            OmegaConf.to_container(  # As `kedro run` reads the same text.
                OmegaConf.from_dotlist([f"{p}={t}" for p, t in zip(unique, chosen, strict=True)])
            ),  # pyright: ignore[reportArgumentType]
        )
        for chosen in itertools.product(*unique.values())
    ]


class Sweep:
    """The settings of a grid in one environment, planned and checked.

    Args:
        settings: of `parse_grid`.
        open_session: opens the environment with parameters.
        pipeline: a registered pipeline; None for the default one.
        user_errors: what opening a session may raise that a user can mend.

    Raises:
        StalenessError: before any run: parameters that are not known or that no node reads, and
            whatever the project's preflight finds in any setting.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        open_session: OpenSession,
        pipeline: str | None,
        user_errors: tuple[type[Exception], ...] = (),
    ) -> None:
        self.settings = settings
        self._pipeline = pipeline
        self._base = open_session({})
        planner = self._base.planner(pipeline)
        self.data_root = planner.data_root
        self._refuse_unknown(planner)
        self._plans = [self._look(setting, open_session, user_errors) for setting in settings]
        _refuse_mistakes(self._plans)
        self._refuse_same()

    @property
    def command(self) -> str:
        """What puts the environment's own outputs back in place."""
        return self._base.run_command(self._pipeline)

    def planned(self) -> list[PlannedSetting]:
        """What each setting would run, each piece of work once, and what that took last time."""
        locks = LockStore(self.data_root)
        taken: set[tuple[str, str]] = set()
        planned = []
        for plan in self._plans:
            work = {name: (name, plan.keys[name]) for name in plan.stale}
            runs = [name for name, key in work.items() if key not in taken]
            taken |= set(work.values())
            seconds = [_last_seconds(locks, name) for name in runs]
            known = [value for value in seconds if value is not None]
            planned.append(
                PlannedSetting(
                    plan.setting,
                    tuple(runs),
                    tuple(name for name in plan.stale if name not in runs),
                    sum(known),
                    len(seconds) - len(known),
                )
            )
        return planned

    def finished_before(self, place: int) -> PastRun | None:
        """The run that made all of a setting before, where all of it is fresh."""
        plan = self._plans[place]
        if plan.stale:
            return None
        found = (
            run
            for run in reversed(History(self.data_root).runs())  # The first had the work.
            if run.outcome == Outcome.DONE
            and plan.fingerprints == {name: node.fingerprint for name, node in run.nodes.items()}
        )
        return next(found, None)

    def run(self, tell: Callable[[int], None], quiet: bool) -> Iterator[FinishedSetting]:
        """Runs the settings one after the other; one that fails stops no other.

        Args:
            tell: called with a setting's place before it runs.
            quiet: the runs write to standard error alone.

        Yields:
            What came of each.
        """
        name = f"{format_time(time.time())} {os.getpid()}"
        for place, setting in enumerate(self.settings):
            tell(place)
            if (past := self.finished_before(place)) is not None:
                yield FinishedSetting(setting, past)
                continue
            before = History(self.data_root).next_number()
            order = {
                **self._base.place(),
                "params": setting.parameters,
                "pipeline": self._pipeline,
                "provenance": {SWEEP: name, SETTING: place},
            }
            code = _run_child(order, quiet)
            ours = [
                run
                for run in History(self.data_root).runs()
                if run.number >= before
                and (run.provenance.get(SWEEP), run.provenance.get(SETTING)) == (name, place)
            ]
            run = ours[0] if ours else None
            error = run.error if run is not None else None
            if code and error is None:
                where = f"in run {run.number}" if run else "before its first node"
                error = f"its process ended with exit code {code} {where}; its words are above"
            yield FinishedSetting(setting, run, error)

    # Before the first run

    def _refuse_unknown(self, planner: Planner) -> None:
        raw = self._base.load_context().config_loader["parameters"]
        switches = planner.settings.switches
        typed = {
            name.removeprefix("params:"): dataset.value
            for name, dataset in planner.graph.datasets.items()
            if dataset.storage is Storage.PARAMETER and name.startswith("params:")
        }
        paths = dict.fromkeys(path for path, _ in dotted(self.settings[0].parameters))
        unknown = [
            text
            for path in paths
            if path.partition(".")[0] not in switches
            and (text := _unknown_path(path, raw, typed)) is not None
        ]
        if unknown:
            listed = "\n".join(f"  - {text}" for text in unknown)
            raise StalenessError(f"--params: found what no parameter is called:\n{listed}")

    def _look(
        self, setting: Setting, open_session: OpenSession, user_errors: tuple[type[Exception], ...]
    ) -> _Plan:
        plan = _Plan(setting)
        try:
            planner = open_session(dict(setting.parameters)).planner(self._pipeline)
        except (StalenessError, *user_errors) as error:
            lines = without_secrets(str(error)).splitlines()
            listed = [line.removeprefix(_ITEM) for line in lines if line.startswith(_ITEM)]
            plan.mistakes = listed or ["\n".join(lines)]
            return plan
        verdicts = planner.plan()
        planner.save_caches()
        plan.stale = [name for name, it in verdicts.items() if it.action is Action.RUN]
        look = planner.settings.preflight
        plan.mistakes = concerning(look(planner.graph), plan.stale) if look and plan.stale else []
        plan.fingerprints = {
            name: it.fingerprint.digest for name, it in verdicts.items() if it.fingerprint
        }
        producers = planner.graph.producers
        for node in planner.graph.nodes:
            made = [bare(name) for name in node.inputs if bare(name) in producers]
            own = {
                name: text
                for name, text in verdicts[node.name].components.items()
                if bare(name.removeprefix(f"{Cause.INPUT}:")) not in producers
            }
            plan.keys[node.name] = hash_json([own, [plan.keys[producers[n].name] for n in made]])
        return plan

    def _refuse_same(self) -> None:
        seen: dict[str, Setting] = {}
        for plan in self._plans:
            key = hash_json(plan.keys)
            if key in seen:
                where = self._pipeline or "the default pipeline"
                raise StalenessError(
                    f"--params: found settings that are the same to every node of {where}: "
                    f"{seen[key]}; and {plan.setting}. Leave out what no node of it reads, or what "
                    "changes no result, or name another --pipeline."
                )
            seen[key] = plan.setting


def _refuse_mistakes(plans: Collection[_Plan]) -> None:
    where: dict[str, list[Setting]] = {}
    for plan in plans:
        for text in plan.mistakes:
            where.setdefault(text, []).append(plan.setting)
    if not where:
        return
    lines = []
    for text, settings in where.items():
        told = "" if len(settings) == len(plans) else f" (of {'; '.join(map(str, settings))})"
        lines.append(f"  - {text}{told}")
    bad = sum(bool(plan.mistakes) for plan in plans)
    raise StalenessError(
        f"Found mistakes in {bad} of {len(plans)} settings before the first run, so none was run:\n"
        + "\n".join(lines)
    )


def _unknown_path(path: str, raw: Any, typed: Mapping[str, Any]) -> str | None:
    """What is wrong with a parameter's path; None where there is such a parameter."""
    if _missing_at(path, raw) is None:
        return None
    group = path.partition(".")[0]
    missing = _missing_at(path, {**raw, group: typed[group]} if group in typed else raw)
    return unknown_name(path, *missing) if missing is not None else None


def _missing_at(path: str, value: Any) -> tuple[str, list[str]] | None:
    """The first step of a path that leads nowhere, with what there is; None if all do."""
    steps = path.split(".")
    for place, step in enumerate(steps):
        if isinstance(value, Mapping):
            names = [str(name) for name in value]
            found = {str(name): item for name, item in value.items()}
        elif hasattr(type(value), "__dataclass_fields__") or hasattr(type(value), "model_fields"):
            found = vars(value)
            names = list(found)
        elif isinstance(value, list | tuple):
            found = {str(index): item for index, item in enumerate(value)}
            names = list(found)
        elif value is None and place:
            return None  # A group that is left out; the project's own checks judge it.
        else:
            names, found = [], {}
        if step not in found:
            before = ".".join(steps[:place])
            return ".".join(steps[: place + 1]), [f"{before}.{n}" if before else n for n in names]
        value = found[step]
    return None


def _last_seconds(locks: LockStore, node: str) -> float | None:
    known = (run.provenance.get("seconds") for run in reversed(locks.read(node).runs))
    return next((seconds for seconds in known if seconds is not None), None)


def _split(text: str) -> list[str]:
    """Splits at commas that stand in no bracket and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces


# A run of a setting, in a process of its own


def _run_child(order: Mapping[str, Any], quiet: bool) -> int:
    """Runs a setting; when this process is told to end, the run ends first."""
    command = [sys.executable, "-m", "kedro_rerun.sweep", json.dumps(order)]

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    output = 2 if quiet else None
    process = subprocess.Popen(command, cwd=order["project"], stdout=output)  # noqa: S603
    try:
        return process.wait()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # From a terminal it has got the same signal.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOPPING_SECONDS)
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Runs what the only argument orders."""
    from kedro.framework.project import configure_project
    from kedro.framework.startup import bootstrap_project
    from kedro.utils import is_kedro_project

    from kedro_rerun.cli import UserErrorCommand, open_session

    order = json.loads(sys.argv[1])
    if is_kedro_project(order["project"]):
        bootstrap_project(Path(order["project"]))
    else:
        configure_project(order["package"])

    def run() -> None:
        session = open_session(order["env"], order["conf_source"], order["params"])
        session.provenance = order["provenance"]
        # What a person would type; records and messages tell it.
        sys.argv = shlex.split(session.run_command(order["pipeline"]))
        with session:
            session.run(pipeline_names=[order["pipeline"]] if order["pipeline"] else None)

    # In a command, as there: nobody takes what the run returns.
    UserErrorCommand(name="run", callback=run).main(args=[], prog_name="kedro run")


if __name__ == "__main__":
    main()
