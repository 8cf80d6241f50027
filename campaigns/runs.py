"""Runs of a cut smoke environment under faults, forked where they begin to look at their data.

Everything is imported, the configuration read, the catalogue made and the project's code followed
once, by a process that then waits in the runner's place; each run is forked of it, so that a
start costs half a second. What that leaves out, runs in a process of their own have.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import pkgutil
import re
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from faults import CLASSES, FULL, KILL_PROCESS, KILL_RUN, ROOT, FaultsFile

REPORTS = (
    "ingest_report.json",
    "shard_report.json",
    "sft_shard_report.json",
    "mixture.json",
    "evaluation.json",
    "held_out_loss.json",
)
"""Those without timings."""
SECONDS_A_RUN = 600
SECONDS_TO_END = 30
"""In which what is left of a killed run must have ended itself."""
FORKED, NOTED, FRESH = "forked", "noted", "a process of its own"
"""How a run starts; the last from the start of Python on."""
FAULTS = {"kill": KILL_RUN, "torn": KILL_RUN, "process": KILL_PROCESS, "full": FULL}

PARAMETERS: dict[str, Any] = {
    "ingest": {
        "num_workers": 1,
        "sources": {
            name: {"max_records": count}
            for name, count in {
                "captions_openclipart": 24,
                "captions_tuxpaint": 24,
                "captions_easy_vqa": 36,
                "web_documents": 3,
                "documents_easy_vqa": 24,
                "text": 80,
                "instructions": 16,
                "digit_strips": 16,
                "descriptions": 16,
                "eval_digits": 4,
                "eval_captions": 4,
                "eval_vqa": 4,
            }.items()
        },
    },
    "pretrain": {"schedule": {"num_steps": 3, "warmup_steps": 1}, "num_workers": 1},
    "upcycle": {"schedule": {"num_steps": 2, "warmup_steps": 1}},
    "sft": {"schedule": {"num_steps": 3, "warmup_steps": 1}, "checkpoint": {"interval_steps": 1}},
    "evaluate": {
        "max_validation_items": 4,
        "bootstrap_samples": 10,
        "tasks": {
            name: {"shots": [0], "max_new_tokens": 2} for name in ("sample_captions", "sample_vqa")
        },
    },
    "report": {"num_examples": 1},
}
"""The smoke environment's, cut further; `num_workers: 1` adds a process that reads shards."""


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and when."""

    kind: str
    at_class: str = "write"
    at: int = 0
    """The number of the change within its class, from 1; for a full disk, the bytes that fit."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: int
    """Exit status, or minus a signal."""
    content: FaultsFile
    words: str
    wrong: str = ""
    """What must not be, whatever happened to the run."""

    @property
    def node(self) -> str:
        """The node at work when it ended."""
        started = re.findall(r"Running (\w+):", self.words)
        return started[-1] if started else "before the first node"


@dataclass(frozen=True)
class Part:
    """What one node of a whole run did."""

    made: tuple[str, ...]
    """Files that were not there before, relative to the data root."""
    changes: tuple[int, ...]
    """By class, and bytes, as last."""


class Project:
    """A data root of its own, and runs in it.

    Args:
        folder: For configuration, data and what a run says.
        edits: Parameters that differ from those of the environment.
    """

    def __init__(self, folder: Path, edits: Mapping[str, Any] | None = None) -> None:
        self.folder, self.data = folder, folder / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "conf", folder / "conf")
        smoke = folder / "conf" / "smoke"
        change_yaml(smoke / "globals.yml", {"data_root": str(self.data)})
        change_yaml(smoke / "parameters.yml", PARAMETERS)
        change_yaml(smoke / "parameters.yml", dict(edits or {}))
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self.server = os.fork()
        if self.server == 0:
            os.close(self._requests)
            os.close(self._answers)
            _serve(folder, requests, answers)
        os.close(requests)
        os.close(answers)
        self._answer(SECONDS_A_RUN)  # it is ready

    def close(self) -> None:
        """Ends the process that runs are forked of."""
        os.close(self._requests)
        os.close(self._answers)

    def run(
        self, fault: Fault | None = None, how: str = FORKED, without: tuple[str, ...] = ()
    ) -> Outcome:
        """Runs the pipeline once, with a fault or none, until nothing of it is left.

        Args:
            fault: What happens to it.
            how: `FORKED`, `FRESH`, or `NOTED` (forked; `parts` has what each node did).
            without: Nodes that do not run, in a forked one.
        """
        content = FaultsFile(below=str(self.data).encode())
        if fault is not None:
            content.fault, content.torn = FAULTS[fault.kind], fault.kind == "torn"
            content.at_class, content.at = CLASSES.index(fault.at_class), fault.at
        place, log, wrong = self.folder / "faults", self.folder / "words.txt", ""
        place.write_bytes(bytes(content))
        log.unlink(missing_ok=True)
        os.write(self._requests, json.dumps([how, without]).encode())
        run = self._answer(SECONDS_A_RUN)
        assert run is not None, "forks at once"
        status = self._answer(SECONDS_A_RUN)
        if status is None:
            wrong = f"did not end in {SECONDS_A_RUN} s"
            os.killpg(run, signal.SIGKILL)
            status = self._answer(SECONDS_A_RUN)
        assert status is not None, "was killed"
        deadline = time.monotonic() + SECONDS_TO_END
        while left := _processes_of(run, place):
            if time.monotonic() > deadline:
                wrong = wrong or f"left processes behind: {sorted(left.values())}"
                for process in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                break
            time.sleep(0.05)
        content = FaultsFile.from_buffer_copy(place.read_bytes())
        words = log.read_text(errors="replace") if log.exists() else ""
        return Outcome(status, content, words, wrong)

    def parts(self) -> dict[str, Part]:
        """What each node of the last run did that was `noted`."""
        noted = json.loads((self.folder / "parts.json").read_text())
        return {
            node: Part(tuple(part["made"]), tuple(part["changes"])) for node, part in noted.items()
        }

    def start_from(self, other: Path | None, without: tuple[str, ...] = ()) -> None:
        """Makes the data root new: nothing, or a copy of another one without some files."""
        shutil.rmtree(self.data, ignore_errors=True)
        if other is None:
            return
        shutil.copytree(other, self.data, symlinks=True)
        for name in without:
            (self.data / name).unlink()
        for folder, _, _ in os.walk(self.data, topdown=False):
            if without and not os.listdir(folder):
                os.rmdir(folder)

    def results(self) -> dict[str, str]:
        """Digest of every published artifact, and of every report without timings."""
        found: dict[str, str] = {}
        for current in sorted(self.data.rglob("CURRENT")):
            version = current.parent / current.read_text().strip()
            digest = hashlib.sha256()
            for path in sorted(path for path in version.rglob("*") if path.is_file()):
                if path.name != "manifest.json":  # that says when it was made
                    digest.update(f"{path.relative_to(version)}\0".encode())
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
            found[str(current.parent.relative_to(self.data))] = digest.hexdigest()
        for name in REPORTS:
            path = self.data / "08_reporting" / name
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        return found

    def _answer(self, seconds: float) -> int | None:
        """A number that the serving process says; None if it says nothing for so long."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return None
        answer = os.read(self._answers, 8)
        if len(answer) < 8:
            log = self.folder / "server.txt"
            raise RuntimeError(f"The process that runs are forked of ended: {log.read_text()}")
        return struct.unpack("q", answer)[0]


def import_everything() -> None:
    """Imports what a run may need, before anything is forked."""
    import mm1_pipeline

    for module in pkgutil.walk_packages(mm1_pipeline.__path__, "mm1_pipeline."):
        if not module.name.endswith(("__main__", "composer_engine")):
            importlib.import_module(module.name)
    from mm1_pipeline.training.engine import choose_engine

    choose_engine("auto")  # imports Composer where it is taken
    for name in ("matplotlib.pyplot", "transformers", "py3langid", "pyarrow.parquet"):
        importlib.import_module(name)


def change_yaml(path: Path, changes: dict[str, Any]) -> None:
    """Lays changes over a file of parameters."""
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))


def merged(base: Any, other: Any) -> Any:
    """Parameters, with others laid over them."""
    if not isinstance(base, dict) or not isinstance(other, dict):
        return other
    return {**base, **{name: merged(base.get(name), value) for name, value in other.items()}}


def _serve(folder: Path, requests: int, answers: int) -> None:
    """Begins a run, and forks one at each request where it would look at its data.

    It never returns; a run goes on from here as any run does, to its end.
    """
    status = 1
    try:
        _say_into(folder / "server.txt")
        # Lines of several processes come out as they are written.
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        os.chdir(ROOT)
        from kedro.framework.cli.cli import main
        from kedro_rerun.runner import StalenessRunner

        run = StalenessRunner._run

        def wait(runner: Any, pipeline: Any, catalog: Any, *rest: Any) -> None:
            _follow_the_code(pipeline, catalog, runner._options())
            gc.collect()
            gc.freeze()  # what is known is no garbage in any run
            os.write(answers, struct.pack("q", 0))
            while request := os.read(requests, select.PIPE_BUF):
                how, without = json.loads(request)
                child = os.fork()
                if child == 0:
                    os.close(requests)
                    os.close(answers)
                    _lead(folder)
                    if how == FRESH:
                        os.execv(sys.executable, [sys.executable, "-m", *sys.argv])
                    if how == NOTED:
                        _note_each_node(folder)
                    if without:
                        pipeline -= pipeline.only_nodes(*without)
                    return run(runner, pipeline, catalog, *rest)
                os.write(answers, struct.pack("q", child))
                ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                os.write(answers, struct.pack("q", ended))
            os._exit(0)

        changed: Any = StalenessRunner
        changed._run = wait
        sys.argv = ["kedro", "run", "--env=smoke", f"--conf-source={folder / 'conf'}"]
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(status)


def _say_into(log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for given, taken in ((null, 0), (output, 1), (output, 2)):
        os.dup2(given, taken)


def _lead(folder: Path) -> None:
    """Makes this process a run: with a session and group of its own, faults, and a log."""
    os.setsid()
    faults = folder / "faults"
    content = FaultsFile.from_buffer_copy(faults.read_bytes())
    content.group = os.getpid()
    faults.write_bytes(bytes(content))
    _say_into(folder / "words.txt")
    os.environ["MM1_FAULTS"] = str(faults)
    ctypes.CDLL(None).faults_open(str(faults).encode())


def _follow_the_code(pipeline: Any, catalog: Any, options: Any) -> None:
    """Follows what nodes call, for all runs that are forked; nobody edits it meanwhile."""
    from kedro_rerun.components import ComponentReader
    from kedro_rerun.kedro_graph import build_graph
    from kedro_rerun.planning import Planner

    graph = build_graph(pipeline, catalog)
    reader = Planner(graph, options.data_root, options.settings).reader
    closures = {node.name: reader._closure(node) for node in graph.nodes}
    changed: Any = ComponentReader
    changed._closure = lambda _, node: closures[node.name]
    changed.code_changed = lambda _, node: False


def _note_each_node(folder: Path) -> None:
    """Has a run write down what each of its nodes does, beside its data root."""
    from kedro_rerun.runner import _Run

    run_node, parts = _Run._run_node, {}

    def now() -> tuple[set[str], list[int]]:
        data = folder / "data"
        files = {str(path.relative_to(data)) for path in data.rglob("*") if not path.is_dir()}
        content = FaultsFile.from_buffer_copy((folder / "faults").read_bytes())
        return files, [*content.changes, content.bytes]

    def noted(run: Any, node: Any, *rest: Any) -> None:
        files, changes = now()
        run_node(run, node, *rest)
        files_after, changes_after = now()
        parts[node.name] = {
            "made": sorted(files_after - files),
            "changes": [b - a for a, b in zip(changes, changes_after, strict=True)],
        }
        (folder / "parts.json").write_text(json.dumps(parts))

    changed: Any = _Run
    changed._run_node = noted


def _processes_of(session: int, faults: Path) -> dict[int, str]:
    """Commands of living processes of a run: of its session, or started with its faults."""
    found: dict[int, str] = {}
    mark = f"MM1_FAULTS={faults}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            own = int(after_name[3]) == session or mark in (folder / "environ").read_bytes()
            if own and after_name[0] not in "ZX":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")[:120]
    return found
