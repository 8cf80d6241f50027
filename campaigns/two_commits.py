"""Whether two commits make the same of the sample: losses, packed shards and reports, bit for bit.

    python campaigns/two_commits.py HEAD~5 HEAD

Each commit is checked out by itself and its smoke run made from nothing, one after the other, by
this environment's libraries; a minute or two each. The last line is JSON: `equal`, how many files
of each kind were compared, and where they differ. Exit code 1 if they do.

What a clock or the code's own identity says is no result and is left out: fields of time
(`_NO_RESULT`), manifests, and report.html, which shows both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKED = ("shards", "sft_shards")
_NO_RESULT = re.compile(r"timing|.*seconds|.*_per_second|.*_at|.*fingerprint|.*versions?|git.*")
_LISTED = 20


def results(data_root: Path) -> dict[str, Any]:
    """What a run left, as values that equal runs have in common.

    Args:
        data_root: of the run.

    Returns:
        By kind and name (`losses`, `packed`, `reports`): rows of a training's metrics and the
        content of a report without fields of time, the bytes of a shard artifact's files.
    """
    found: dict[str, Any] = {}
    for path in sorted((data_root / "08_reporting").rglob("*.json*")):
        kind = "losses" if path.name.startswith("training_") else "reports"
        lines = path.read_text(encoding="utf-8")
        rows = lines.splitlines() if path.suffix == ".jsonl" else [lines]
        name = path.relative_to(data_root / "08_reporting").as_posix()
        found[f"{kind}: {name}"] = [_result(json.loads(row)) for row in rows]
    for current in sorted(data_root.glob("*/*/CURRENT")):
        if current.parent.name not in PACKED:
            continue
        version = current.parent / current.read_text(encoding="utf-8").strip()
        for path in sorted(version.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                name = f"{current.parent.name}/{path.relative_to(version).as_posix()}"
                found[f"packed: {name}"] = path.read_bytes()
    return found


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The last line: what was compared, and where two runs differ.

    Args:
        first: `results` of one run.
        second: of the other.
    """
    differences = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            differences.append(f"{name}: only in the {'second' if name in second else 'first'}")
        elif isinstance(first[name], bytes):
            if first[name] != second[name]:
                differences.append(f"{name}: other bytes")
        else:
            differences += [f"{name}{place}" for place in _differences(first[name], second[name])]
    kinds = [name.partition(":")[0] for name in first]
    counts = {kind: kinds.count(kind) for kind in ("losses", "packed", "reports")}
    # Nothing compared is no equality.
    is_equal = not differences and all(counts.values())
    listed = differences[:_LISTED]
    return {"equal": is_equal, **counts, "num_differences": len(differences), "differences": listed}


def run_smoke(commit: str, folder: Path) -> dict[str, Any]:
    """Checks a commit out and runs it; `results` of that.

    Args:
        commit: as git takes it.
        folder: gets the checkout, and the run's data in it.

    Raises:
        SystemExit: the run failed; the end of what it said.
    """
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        sources = [folder / "src", folder / "plugins" / "kedro-rerun" / "src"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "DO_NOT_TRACK": "1",
        }
        told = subprocess.run(
            [sys.executable, "-m", "kedro", "run", "--env=smoke"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if told.returncode:
            raise SystemExit(f"{commit}: its smoke run failed.\n{told.stdout[-3_000:]}")
        return results(folder / "data" / "smoke")
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _result(value: Any) -> Any:
    """A JSON value without what is no result."""
    if isinstance(value, dict):
        return {k: _result(v) for k, v in value.items() if not _NO_RESULT.fullmatch(k)}
    return [_result(item) for item in value] if isinstance(value, list) else value


def _differences(first: Any, second: Any) -> Iterator[str]:
    """Paths into two JSON values, each with what is found there."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key in first:
            for place in _differences(first[key], second[key]):
                yield f".{key}{place}"
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            for place in _differences(one, other):
                yield f"[{number}]{place}"
    elif repr(first) != repr(second):  # True is no 1, and NaN is NaN.
        yield f": {str(first)[:60]} != {str(second)[:60]}"


def main() -> int:
    """Runs both and prints the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commits", nargs=2, metavar="commit")
    commits = parser.parse_args().commits
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_smoke(commit, Path(folder) / str(n)) for n, commit in enumerate(commits)]
    line = {"commits": commits, **compare(*runs)}
    print(json.dumps(line))
    return 0 if line["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
