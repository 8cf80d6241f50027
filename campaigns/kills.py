"""Kills whole runs at changes of files, again and again until one gets through, and compares.

    python campaigns/kills.py                  # 1,000 kills, some hours
    python campaigns/kills.py --kills 40 --chains 2

A chain is one data root: `kedro run --env=smoke` is started, killed with all its processes at a
drawn change of a file (SIGKILL, before the change happens), started again, and so on; after its
last kill it must get through, and every artifact and report without timings must be that of a run
that nobody killed, bit for bit. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
KILL_POINTS = Path(__file__).with_name("kill_points")
REPORTS = (
    "ingest_report.json",
    "shard_report.json",
    "mixture.json",
    "evaluation.json",
    "held_out_loss.json",
)
"""Those without timings."""
SECONDS_A_RUN = 900
STUCK = "a run did not end"


class Run:
    """A data root of its own, and runs of the smoke environment in it.

    Args:
        folder: For configuration, data and the counter of changes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        shutil.copytree(ROOT / "conf", folder / "conf")
        path = folder / "conf" / "smoke" / "globals.yml"
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, "data_root": str(self.data)}))

    def start(self, kill_at: int = 0) -> tuple[int, int, str]:
        """Runs the pipeline; gives its exit status, the changes it made, and its last words."""
        counter = self.folder / "changes"
        counter.unlink(missing_ok=True)
        command = [sys.executable, "-m", "kedro", "run", "--env=smoke"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(KILL_POINTS), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "DO_NOT_TRACK": "1",
            "MM1_KILL_COUNTER": str(counter),
            "MM1_KILL_AT": str(kill_at),
            "MM1_KILL_BELOW": str(self.data),
        }
        process = subprocess.Popen(
            [*command, f"--conf-source={self.folder / 'conf'}"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=SECONDS_A_RUN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = f"{process.communicate()[0]}\n{STUCK} in {SECONDS_A_RUN} s"
        changes = counter.stat().st_size if counter.exists() else 0
        return process.returncode, changes, output[-2_000:]

    def results(self) -> dict[str, Any]:
        """Digest of every published artifact, and of every report without timings."""
        found: dict[str, Any] = {}
        for current in sorted(self.data.rglob("CURRENT")):
            version = current.parent / current.read_text().strip()
            name = str(current.parent.relative_to(self.data))
            found[name] = json.loads((version / "manifest.json").read_text())["digest"]
        for name in REPORTS:
            content = (self.data / "08_reporting" / name).read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()
        return found

    def last_stage(self) -> str:
        """Where a kill hit: the artifact that was published last."""
        published = [
            (path.stat().st_mtime, path.parent.name) for path in self.data.rglob("CURRENT")
        ]
        return f"after {max(published)[1]}" if published else "before the first artifact"


def chain(number: int, kills: int, changes: int, folder: Path) -> dict[str, Any]:
    """Kills one data root's runs, then lets one through.

    Args:
        number: Of the chain; decides where its kills hit.
        kills: How many.
        changes: Of files in a run that nobody kills.
        folder: For its data root.
    """
    rng = random.Random(f"chain {number}")
    run, done, places, wrong = Run(folder), 0, Counter[str](), list[str]()
    while done < kills:
        # On average as far as the kills must go, so that they hit all stages.
        status, _, words = run.start(1 + int(rng.uniform(0, 2) * changes / kills))
        if status == -signal.SIGKILL and STUCK not in words:
            done += 1
            places[run.last_stage()] += 1
            continue
        if status == 0:
            # It got through before its kills were used up: the rest hit a new data root.
            shutil.rmtree(folder)
            run = Run(folder)
            continue
        wrong.append(words)
        break
    status, _, words = run.start()
    if status != 0:
        wrong.append(words)
    return {
        "kills": done,
        "places": places,
        "wrong": wrong,
        "results": None if wrong else run.results(),
    }


def main() -> int:
    """Runs a campaign; 1 if a chain did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--chains", type=int, default=None, help="default: one for 40 kills")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    chains = options.chains or -(-options.kills // 40)
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Run(Path(place) / "undisturbed")
        status, changes, words = undisturbed.start()
        if status != 0:
            print(words)
            return 1
        expected = undisturbed.results()
        shares = [options.kills // chains + (n < options.kills % chains) for n in range(chains)]
        start, killed, held = time.monotonic(), 0, 0
        places, failures = Counter[str](), list[str]()

        def one(number: int) -> dict[str, Any]:
            return chain(number, shares[number], changes, Path(place) / f"chain{number}")

        with ThreadPoolExecutor(options.workers) as pool:
            for number, found in enumerate(pool.map(one, range(chains))):
                killed += found["kills"]
                places += found["places"]
                differing = [
                    name
                    for name in expected
                    if found["results"] is not None and found["results"].get(name) != expected[name]
                ]
                failures += [f"chain {number}: {words}" for words in found["wrong"]]
                failures += [f"chain {number}: {name} differs" for name in differing]
                held += not (found["wrong"] or differing)
                rate = killed / (time.monotonic() - start)
                left = (options.kills - killed) / rate if rate else 0.0
                print(f"{killed} of {options.kills} kills, about {left:,.0f} s left", flush=True)
    content = {
        "kills": killed,
        "chains": chains,
        "chains_held": held,
        "changes_a_run": changes,
        "places": dict(places),
        "failures": failures,
    }
    print(json.dumps(content))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
