"""Kills whole runs at changes of files and fills their disk, until one gets through; compares.

    python campaigns/kills.py                          # 1,000 faults
    python campaigns/kills.py --faults 40 --per-chain 40
    python campaigns/kills.py --only 7                 # chain 7 again, with what its runs said

A chain is one data root: all 17 nodes are run on a cut smoke environment; before a drawn change
of a file, by whichever call of the system and process, the run is killed (SIGKILL to all its
processes, or to the one that makes the change, half of a write made or none), or from a drawn byte
on its disk is full. It is started again, and so on; after its last fault it must get through, and
every artifact and report without timings must be that of a run that nobody disturbed, bit for bit.
A run that was killed says nothing; one on a full disk must end by itself and say so.

Runs are forked from a process that has imported everything, so that a start costs a second.
Chains that are finished are in the file of `--results`; the same command goes on behind them. The
last line is one JSON object. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("faults.c")
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

CLASSES = ("open", "write", "rename", "remove", "folder", "sync", "resize", "link")
"""Of changes, in the order of faults.c."""
KILL_RUN, KILL_PROCESS, FULL = 1, 2, 3
FAULTS = {"kill": KILL_RUN, "torn": KILL_RUN, "process": KILL_PROCESS, "full": FULL}
AT_THE_START = 0.15
"""Share of kills that hit what every run does first, such as clearing up after an earlier kill."""
STRIDE = 4
"""How often a chain's faults would reach the end of a run if nothing were done again after them."""
WEIGHTS = {"kill": 5, "torn": 2, "process": 1, "full": 2}

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


class FaultsFile(ctypes.Structure):
    """`struct faults` of faults.c."""

    _fields_ = (
        ("changes", ctypes.c_uint64 * len(CLASSES)),
        ("bytes", ctypes.c_uint64),
        ("fault", ctypes.c_uint64),
        ("at_class", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("torn", ctypes.c_uint64),
        ("group", ctypes.c_int64),
        ("hit", ctypes.c_uint64),
        ("below", ctypes.c_char * 1024),
        ("call", ctypes.c_char * 32),
        ("path", ctypes.c_char * 1024),
    )


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


class Project:
    """A data root of its own, and runs of the cut smoke environment in it.

    Args:
        folder: For configuration, data and what a run says.
        known_code: A data root whose summaries of the project's code are taken over.
    """

    def __init__(self, folder: Path, known_code: Path | None = None) -> None:
        self.folder, self.data = folder, folder / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "conf", folder / "conf")
        smoke = folder / "conf" / "smoke"
        _change_yaml(smoke / "globals.yml", {"data_root": str(self.data)})
        _change_yaml(smoke / "parameters.yml", PARAMETERS)
        if known_code is not None:
            name = Path(".staleness/cache/code.json")
            (self.data / name).parent.mkdir(parents=True)
            shutil.copyfile(known_code / name, self.data / name)

    def run(self, fault: Fault | None = None) -> Outcome:
        """Runs the pipeline once, with a fault or none, until nothing of it is left."""
        content = FaultsFile(below=str(self.data).encode())
        if fault is not None:
            content.fault, content.torn = FAULTS[fault.kind], fault.kind == "torn"
            content.at_class, content.at = CLASSES.index(fault.at_class), fault.at
        place, log = self.folder / "faults", self.folder / "words.txt"
        place.write_bytes(bytes(content))
        child = os.fork()
        if child == 0:
            _run_pipeline(self.folder, place, log)
        deadline, wrong, status = time.monotonic() + SECONDS_A_RUN, "", None
        while status is None:
            done, raw = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(raw)
            elif time.monotonic() > deadline:
                wrong = f"did not end in {SECONDS_A_RUN} s"
                os.killpg(child, signal.SIGKILL)
                deadline = float("inf")
            else:
                time.sleep(0.02)
        deadline = time.monotonic() + SECONDS_TO_END
        while left := _processes_of(child, place):
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


def _change_yaml(path: Path, changes: dict[str, Any]) -> None:
    def merge(base: Any, other: Any) -> Any:
        if not isinstance(base, dict) or not isinstance(other, dict):
            return other
        return {**base, **{name: merge(base.get(name), value) for name, value in other.items()}}

    path.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), changes)))


def _run_pipeline(folder: Path, faults: Path, log: Path) -> None:
    """Is the run: leads a session and process group of its own, and never returns."""
    status = 1
    try:
        os.setsid()
        content = FaultsFile.from_buffer_copy(faults.read_bytes())
        content.group = os.getpid()
        faults.write_bytes(bytes(content))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for given, taken in ((null, 0), (output, 1), (output, 2)):
            os.dup2(given, taken)
        # Lines of several processes come out as they are written.
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        os.environ["MM1_FAULTS"] = str(faults)
        ctypes.CDLL(None).faults_open(str(faults).encode())
        os.chdir(ROOT)
        from kedro.framework.cli.cli import main

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


@dataclass(frozen=True)
class Counts:
    """Changes by class, and bytes, as last."""

    start: tuple[int, ...]
    """Of a run that finds everything fresh."""
    work: tuple[int, ...]
    """That a run makes beyond them which finds nothing."""


def draw_fault(rng: random.Random, counts: Counts, faults: int) -> Fault:
    """A fault, on average so far behind the start of a run that all of a chain hit all stages.

    Args:
        rng: Decides.
        counts: What a run does that nobody disturbs.
        faults: How many a chain has.
    """
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    share = rng.uniform(0, 2 * STRIDE / faults)
    if kind == "full":
        return Fault(kind, at=counts.start[-1] + int(share * counts.work[-1]))
    frequent = [name for name, n in zip(CLASSES, counts.work, strict=False) if n >= faults]
    if kind != "torn" and rng.random() < AT_THE_START:
        started = [name for name, n in zip(CLASSES, counts.start, strict=False) if n]
        name = rng.choice(started)
        return Fault(kind, name, rng.randint(1, counts.start[CLASSES.index(name)]))
    number = CLASSES.index("write" if kind == "torn" else rng.choice(frequent))
    at = counts.start[number] + 1 + int(share * counts.work[number])
    return Fault(kind, CLASSES[number], at)


def _judge(fault: Fault, outcome: Outcome) -> str:
    """What was wrong with how a run ended under a fault."""
    if outcome.wrong:
        return outcome.wrong
    if fault.kind in ("kill", "torn"):
        return "" if outcome.status == -signal.SIGKILL else f"status {outcome.status}"
    if fault.kind == "process":  # the run itself, or a child of it, which it may replace
        return "" if outcome.status in (-signal.SIGKILL, 0, 1) else f"status {outcome.status}"
    if outcome.status == 0:
        return ""  # what did not fit was not needed, such as a cache
    if outcome.status != 1:
        return f"status {outcome.status}"
    return "" if "no space left" in outcome.words.lower() else "says nothing of a full disk"


def chain(
    number: int, faults: int, counts: Counts, expected: dict[str, str], place: Path
) -> dict[str, Any]:
    """Disturbs one data root's runs, then lets one through.

    Args:
        number: Of the chain; decides its faults.
        faults: How many.
        counts: What a run does that nobody disturbs.
        expected: Its results.
        place: For data roots; `undisturbed` is there.

    Returns:
        Every fault with what it hit, and whatever did not hold.
    """
    rng, known_code = random.Random(f"chain {number}"), place / "undisturbed" / "data"
    project = Project(place / f"chain{number}", known_code)
    hits: list[dict[str, Any]] = []
    wrong: list[str] = []
    while len(hits) < faults and not wrong:
        fault = draw_fault(rng, counts, faults)
        outcome = project.run(fault)
        if not outcome.content.hit:
            if outcome.wrong or outcome.status != 0:
                wrong.append(f"status {outcome.status} {outcome.wrong}: {outcome.words[-1500:]}")
            else:  # it got through before its faults were used up: the rest hits a new data root
                wrong += _differences(expected, project.results())
                project = Project(project.folder, known_code)
            continue
        path = Path(outcome.content.path.decode(errors="replace"))
        hit = {
            **asdict(fault),
            "call": outcome.content.call.decode(),
            "path": str(path.relative_to(project.data)),
            "node": outcome.node,
            "words": len(outcome.words.splitlines()),
        }
        hits.append(hit)
        print(f"chain {number}: {len(hits)} of {faults} {hit}", file=sys.stderr, flush=True)
        if problem := _judge(fault, outcome):
            wrong.append(f"fault {len(hits)}, {hit}: {problem}: {outcome.words[-1500:]}")
    if not wrong:
        outcome = project.run()
        if outcome.status != 0 or outcome.wrong:
            wrong.append(f"last run: {outcome.status} {outcome.wrong}: {outcome.words[-1500:]}")
        else:
            wrong += _differences(expected, project.results())
    if not wrong:
        shutil.rmtree(project.folder)
    return {"chain": number, "faults": hits, "wrong": wrong}


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [f"{name} differs" for name in names if expected.get(name) != found.get(name)]


def _summarize(chains: list[dict[str, Any]], whole: FaultsFile) -> dict[str, Any]:
    """Counts of [held, tried]: a fault held if all of its chain did."""
    groups: dict[str, dict[str, list[int]]] = {"by_fault": {}, "by_class": {}, "by_node": {}}
    for result in chains:
        for hit in result["faults"]:
            called = "disk full" if hit["kind"] == "full" else hit["at_class"]
            names = {"by_fault": hit["kind"], "by_class": called, "by_node": hit["node"]}
            for group, name in names.items():
                count = groups[group].setdefault(name, [0, 0])
                count[0] += not result["wrong"]
                count[1] += 1
    held = Counter(not result["wrong"] for result in chains)
    return {
        "tried": sum(len(result["faults"]) for result in chains),
        "held": sum(len(result["faults"]) for result in chains if not result["wrong"]),
        "chains": len(chains),
        "chains_held": held[True],
        "changes_a_run": dict(zip(CLASSES, whole.changes, strict=True)),
        "bytes_a_run": whole.bytes,
        **groups,
        "failures": {r["chain"]: r["wrong"] for r in chains if r["wrong"]},
    }


def load_before_the_c_library() -> None:
    """Starts this process again with faults.c before the C library; everything is forked of it."""
    if os.environ.get("MM1_FAULTS_LOADED"):
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        sys.exit("Found no C compiler on Linux, expected cc, gcc or clang.")
    library = Path(tempfile.gettempdir()) / f"mm1-faults-{os.getuid()}-{_hash_of(SOURCE)}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        made.replace(library)
    environment = {
        "LD_PRELOAD": str(library),
        "MM1_FAULTS_LOADED": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(
            [
                str(ROOT / "src"),
                str(ROOT / "plugins" / "kedro-rerun" / "src"),
                os.environ.get("PYTHONPATH", ""),
            ]
        ),
    }
    os.environ.update(environment)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _import_everything() -> None:
    import mm1_pipeline

    for module in pkgutil.walk_packages(mm1_pipeline.__path__, "mm1_pipeline."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("composer", "matplotlib.pyplot", "transformers", "py3langid", "pyarrow.parquet"):
        importlib.import_module(name)


def _work(
    numbers: list[int], share: int, counts: Counts, expected: dict[str, str], options: Any
) -> None:
    """A worker: chain after chain, each appended to the results as it ends."""
    for number in numbers:
        found = chain(number, share, counts, expected, options.place)
        found["expected"] = options.expected
        with options.results.open("a") as file:
            file.write(json.dumps(found) + "\n")


def _finished(options: Any) -> list[dict[str, Any]]:
    """Chains of this campaign that are in the file of results."""
    if not options.results.exists():
        return []
    found = []
    for line in options.results.read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line, by a campaign that was killed
            found.append(json.loads(line))
    return [line for line in found if line["expected"] == options.expected]


def main() -> int:
    """Runs a campaign; 1 if a chain did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=1_000)
    parser.add_argument("--per-chain", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, default=None, help="one chain, which is kept")
    parser.add_argument("--results", type=Path, default=None, help="finished chains; goes on there")
    parser.add_argument("--place", type=Path, default=None, help="for data roots (a new folder)")
    options = parser.parse_args()
    load_before_the_c_library()
    options.place = Path(tempfile.mkdtemp(prefix="mm1-kills-", dir=options.place))
    options.results = options.results or options.place / "chains.jsonl"
    _import_everything()
    undisturbed = Project(options.place / "undisturbed")
    outcome = undisturbed.run()
    if outcome.status != 0 or outcome.wrong:
        print(outcome.words[-3_000:], outcome.wrong)
        return 1
    whole, expected = outcome.content, undisturbed.results()
    fresh = undisturbed.run().content
    start_counts = (*fresh.changes, fresh.bytes)
    pairs = zip(start_counts, (*whole.changes, whole.bytes), strict=True)
    counts = Counts(start_counts, tuple(max(0, all_ - first) for first, all_ in pairs))
    share = min(options.per_chain, options.faults)
    options.expected = hashlib.sha256(json.dumps([expected, share]).encode()).hexdigest()[:16]
    done = {found["chain"] for found in _finished(options)}
    wanted = range(-(-options.faults // share)) if options.only is None else [options.only]
    todo = [number for number in wanted if number not in done or options.only is not None]
    print(f"{len(done)} chains are finished, {len(todo)} to do, of {share} faults each", flush=True)
    start, shown, workers = time.monotonic(), 0, []
    for worker in range(min(options.workers, len(todo))):
        child = os.fork()
        if child == 0:
            try:
                _work(todo[worker :: options.workers], share, counts, expected, options)
            except BaseException as error:
                print(f"worker {worker}: {error!r}", flush=True)
                os._exit(1)
            os._exit(0)
        workers.append(child)
    broken = False
    while workers:
        workers, ended = [], [(child, os.waitpid(child, os.WNOHANG)) for child in workers]
        for child, (gone, status) in ended:
            broken |= bool(gone and status)
            workers += [] if gone else [child]
        new = len(_finished(options)) - len(done)
        if new > shown:
            shown = new
            rate = new * share / (time.monotonic() - start)
            left = (len(todo) - new) * share / rate
            print(
                f"{new * share:,} faults, {60 * rate:.1f} a minute, {left:,.0f} s left", flush=True
            )
        time.sleep(0.5)
    chains = [found for found in _finished(options) if found["chain"] in wanted]
    summary = _summarize(chains, whole)
    print(json.dumps(summary))
    if not summary["failures"] and not broken and options.only is None:
        shutil.rmtree(options.place, ignore_errors=True)
    return int(bool(summary["failures"]) or broken)


if __name__ == "__main__":
    sys.exit(main())
