"""Kills whole runs at changes of files and fills their disk, until one gets through; compares.

    python campaigns/kills.py                          # 1,000 faults
    python campaigns/kills.py --faults 36 --per-chain 2
    python campaigns/kills.py --only 7                 # chain 7 again; its data root is kept

A chain is one data root of a cut smoke environment. Chain after chain, it is what a whole run left
without what one of its 21 nodes made, or without the record of it alone, or it is empty. Before
a drawn change of a file, by whichever call of the system and process, the run that makes it up is
killed (SIGKILL to all its processes, or to the one that makes the change, half of a write made or
none), or from a drawn byte on its disk is full. It is started again, and so on; after its last
fault it must get through, and every artifact and report without timings must be that of a run
that nobody disturbed, bit for bit. A run that was killed says nothing; one on a full disk must end
by itself and say so.

Runs are forked (runs.py); every 20th is a process of its own. Chains that are finished are in the
file of `--results`; the same command goes on behind them. The last line is one JSON object. Needs
Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults import CLASSES, end_with_parent, load_before_the_c_library
from runs import FORKED, FRESH, NOTED, Fault, Outcome, Part, Project, import_everything

AT_THE_START = 0.15
"""Share of kills that hit what every run does first, such as clearing up after an earlier kill."""
WEIGHTS = {"kill": 5, "torn": 2, "process": 1, "full": 2}
EVERY = 20
"""Every which fault hits a run in a process of its own."""
REPORT = "write_report"


@dataclass(frozen=True)
class Whole:
    """What a run does that nobody disturbs."""

    data: Path
    """What it left."""
    start: tuple[int, ...]
    """Changes by class, and bytes, as last, of a run that finds everything fresh."""
    parts: dict[str, Part]
    changes: tuple[int, ...]
    """Of all of it."""
    results: dict[str, str]

    @property
    def work(self) -> tuple[int, ...]:
        """Changes beyond those of the start."""
        pairs = zip(self.start, self.changes, strict=True)
        return tuple(max(0, all_ - first) for first, all_ in pairs)


def observe(project: Project, place: Path) -> Whole:
    """Runs once without a fault.

    Raises:
        RuntimeError: It did not get through, or not twice.
    """
    whole = project.run(how=NOTED)
    parts, results = project.parts(), project.results()
    fresh = project.run()
    for outcome in (whole, fresh):
        if outcome.status != 0 or outcome.wrong:
            raise RuntimeError(f"{outcome.wrong}: {outcome.words[-3_000:]}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(project.data, place)
    # What is known of the project's code is left to runs that are processes of their own.
    for name in ("code.json", "closures.json"):
        (place / ".staleness" / "cache" / name).unlink(missing_ok=True)
    start, changes = (
        (*outcome.content.changes, outcome.content.bytes) for outcome in (fresh, whole)
    )
    return Whole(place, tuple(start), parts, tuple(changes), results)


def draw_fault(
    rng: random.Random, start: tuple[int, ...], work: tuple[int, ...], share: float
) -> Fault:
    """A fault somewhere in a run.

    Args:
        rng: Decides.
        start: Changes by class, and bytes, of what every run does first.
        work: Of what this one does behind that.
        share: Of the work that is done when it hits.
    """
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if kind == "full":
        return Fault(kind, at=start[-1] + int(share * work[-1]))
    if kind != "torn" and rng.random() < AT_THE_START:
        started = [name for name, n in zip(CLASSES, start, strict=False) if n]
        name = rng.choice(started)
        return Fault(kind, name, rng.randint(1, start[CLASSES.index(name)]))
    worked = [name for name, n in zip(CLASSES, work, strict=False) if n]
    number = CLASSES.index("write" if kind == "torn" else rng.choice(worked))
    return Fault(kind, CLASSES[number], start[number] + 1 + int(share * work[number]))


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


def chain(project: Project, number: int, whole: Whole, options: Any) -> dict[str, Any]:
    """Disturbs one data root's runs, then lets one through.

    Args:
        project: Whose data root it is.
        number: Of the chain; decides its faults.
        whole: What a run does that nobody disturbs.
        options: How many faults, and the seed.

    Returns:
        Every fault with what it hit, and whatever did not hold.
    """
    rng = random.Random(f"chain {options.seed} {number}")
    beginnings = [*whole.parts, None]
    node = beginnings[number % len(beginnings)]
    # By a whole run's end, all faults together have come through it about once.
    work, far = (whole.work, 2 / options.per_chain) if node is None else (None, 1)
    work = work or whole.parts[str(node)].changes

    # Trainings say how fast they were, so that the report of a root that is whole would be made
    # again by every run that gets through.
    without = () if node in (None, REPORT) else (REPORT,)

    def start() -> None:
        made = None if node is None else whole.parts[node].made
        if made is not None and rng.random() < 0.5:
            made = tuple(name for name in made if name == f".staleness/{node}.json")
        project.start_from(None if made is None else whole.data, made or ())

    hits: list[dict[str, Any]] = []
    wrong: list[str] = []
    start()
    while len(hits) < options.per_chain and not wrong:
        fault = draw_fault(rng, whole.start, work, rng.uniform(0, far))
        how = FRESH if (number * options.per_chain + len(hits)) % EVERY == EVERY - 1 else FORKED
        outcome = project.run(fault, how, without)
        if not outcome.content.hit:
            if outcome.wrong or outcome.status != 0:
                wrong.append(f"status {outcome.status} {outcome.wrong}: {outcome.words[-1500:]}")
            else:  # it got through before its faults were used up: the rest hits a new data root
                wrong += _differences(whole.results, project.results())
                start()
            continue
        path = Path(outcome.content.path.decode(errors="replace"))
        hit = {
            **asdict(fault),
            "call": outcome.content.call.decode(),
            "path": str(path.relative_to(project.data)),
            "node": outcome.node,
            "process": how,
            "words": len(outcome.words.splitlines()),
        }
        hits.append(hit)
        print(f"chain {number}: {len(hits)} of {options.per_chain} {hit}", file=sys.stderr)
        if problem := _judge(fault, outcome):
            wrong.append(f"fault {len(hits)}, {hit}: {problem}: {outcome.words[-1500:]}")
    if not wrong:
        outcome = project.run(without=without)
        if outcome.status != 0 or outcome.wrong:
            wrong.append(f"last run: {outcome.status} {outcome.wrong}: {outcome.words[-1500:]}")
        else:
            wrong += _differences(whole.results, project.results())
    if wrong or options.only is not None:
        shutil.move(project.data, options.place / f"chain{number}")
    return {"chain": number, "faults": hits, "wrong": wrong}


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [f"{name} differs" for name in names if expected.get(name) != found.get(name)]


def _summarize(chains: list[dict[str, Any]], whole: Whole) -> dict[str, Any]:
    """Counts of [held, tried]: a fault held if all of its chain did."""
    groups: dict[str, dict[str, list[int]]] = {
        f"by_{name}": {} for name in ("fault", "class", "node", "process")
    }
    for result in chains:
        for hit in result["faults"]:
            called = "disk full" if hit["kind"] == "full" else hit["at_class"]
            names = {
                "by_fault": hit["kind"],
                "by_class": called,
                "by_node": hit["node"],
                "by_process": hit["process"],
            }
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
        "changes_a_run": dict(zip(CLASSES, whole.changes, strict=False)),
        "bytes_a_run": whole.changes[-1],
        **groups,
        "failures": {r["chain"]: r["wrong"] for r in chains if r["wrong"]},
    }


def _work(project: Project, numbers: list[int], whole: Whole, options: Any) -> None:
    """A worker: chain after chain, each appended to the results as it ends."""
    for number in numbers:
        found = chain(project, number, whole, options)
        found["expected"] = options.expected
        with options.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
    project.close()
    with contextlib.suppress(ChildProcessError):  # another process's child
        os.waitpid(project.server, 0)


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
    parser.add_argument("--per-chain", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, default=None, help="one chain, which is kept")
    parser.add_argument("--results", type=Path, default=None, help="finished chains; goes on there")
    parser.add_argument("--place", type=Path, default=None, help="for data roots (a new folder)")
    options = parser.parse_args()
    load_before_the_c_library()
    options.per_chain = min(options.per_chain, options.faults)
    options.place = Path(tempfile.mkdtemp(prefix="mm1-kills-", dir=options.place))
    options.results = options.results or options.place / "chains.jsonl"
    import_everything()
    project = Project(options.place / "worker0")
    whole = observe(project, options.place / "whole")
    share = options.per_chain
    campaign = [whole.results, share, options.seed]
    options.expected = hashlib.sha256(json.dumps(campaign).encode()).hexdigest()[:16]
    done = {found["chain"] for found in _finished(options)}
    wanted = range(-(-options.faults // share)) if options.only is None else [options.only]
    todo = [number for number in wanted if number not in done or options.only is not None]
    print(f"{len(done)} chains are finished, {len(todo)} to do, of {share} faults each", flush=True)
    start, shown, workers = time.monotonic(), 0, []
    for worker in range(min(options.workers, len(todo))):
        child = os.fork()
        if child == 0:
            try:
                end_with_parent()
                own = project if worker == 0 else Project(options.place / f"worker{worker}")
                _work(own, todo[worker :: options.workers], whole, options)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        workers.append(child)
    project.close()
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
    os.waitpid(project.server, 0)
    print(f"{sum(os.times()[:4]):,.0f} s of one core, with imports and the undisturbed run")
    chains = [found for found in _finished(options) if found["chain"] in wanted]
    summary = _summarize(chains, whole)
    print(json.dumps(summary))
    if not summary["failures"] and not broken and options.only is None:
        shutil.rmtree(options.place, ignore_errors=True)
    return int(bool(summary["failures"]) or broken)


if __name__ == "__main__":
    sys.exit(main())
