"""Makes one edit after the other, and compares what reruns with what would have changed.

    python campaigns/edits.py                       # every edit of docs/staleness.md
    python campaigns/edits.py --only sft.seed=5
    python campaigns/edits.py --kinds code data

Edits are of parameters, and in a copy of the project of its code and its data, and of libraries,
another version of which pip puts before the installed one. For each, a copy of what a whole run
left is run again; then the same runs whole in an empty root. Both must give the same artifacts and
reports, bit for bit. What the plain run changes had to run; what else ran is told. Edits that are
finished are in the file of `--results`; the same command goes on behind them, and `--table` prints
them as docs/staleness.md holds them. The last line is one JSON object. Needs Linux and a C
compiler; libraries need a package index.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from faults import ROOT, load_before_the_c_library
from runs import PARAMETERS, Project, change_yaml, import_everything

sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from edits_of_parameters import (
    CODE_EDITS,
    DATA_EDITS,
    EDITS,
    FORETOLD,
    LIBRARY_EDITS,
    LOGS,
    FileEdit,
)

EXPENSIVE = {
    *("pretrain_text", "pretrain_vision", "pretrain_model"),
    *("fine_tune", "train_dense_control", "train_experts"),
}
"""Trainings, which must never run for nothing."""


def nested(edit: str) -> dict[str, Any]:
    """`a.b=1` as parameters."""
    path, _, value = edit.partition("=")
    content: Any = yaml.safe_load(value)
    for name in reversed(path.split(".")):
        content = {name: content}
    return content


def nodes_that_ran(words: str) -> list[str]:
    """Names of nodes, from what a run says."""
    return re.findall(r"Running (\w+):", words)


Places = Mapping[str, tuple[set[str], set[str]]]
"""Where each node's outputs lie, and its inputs."""


def places_of_nodes() -> Places:
    """Where each node's outputs lie, and its inputs."""
    from kedro.framework.project import configure_project, pipelines

    configure_project("mm1_pipeline")
    catalog = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())

    def places(names: Iterable[str]) -> set[str]:
        entries = [catalog[name] for name in names if name in catalog]
        found = [str(entry.get("path") or entry.get("filepath")) for entry in entries]
        return {place.removeprefix("${globals:data_root}/") for place in found}

    return {
        node.name: (places(node.outputs), places(node.inputs))
        for node in pipelines["__default__"].nodes
    }


Results = Mapping[str, str]
"""Digests by the place of what was made."""


def results(data: Path) -> Results:
    """Digest of every artifact and report of a data root, but for seconds and rates."""
    found: dict[str, str] = {}
    for current in sorted(data.rglob("CURRENT")):
        version = current.parent / current.read_text().strip()
        files = sorted(path for path in version.rglob("*") if path.is_file())
        names = [(str(path.relative_to(version)), path.read_bytes()) for path in files]
        # The manifest says when it was made.
        content = [(name, _digest(read)) for name, read in names if name != "manifest.json"]
        found[str(current.parent.relative_to(data))] = _digest(repr(content).encode())
    for path in sorted((data / "08_reporting").rglob("*")):
        if path.is_dir():
            continue
        content = path.read_bytes()
        if path.suffix == ".jsonl":  # of a training
            rows = [json.loads(line) for line in content.splitlines()]
            content = repr([(row["step"], row["loss"], row["terms"]) for row in rows]).encode()
        elif path.suffix == ".html":  # by its words: its numbers and pictures hold seconds
            words = re.sub(r"data:[^\"')]+|<svg.*?</svg>", "", content.decode(), flags=re.DOTALL)
            content = repr(re.findall(r"[a-zA-Z]{3,}", words)).encode()
        found[str(path.relative_to(data))] = _digest(content)
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def try_edit(edit: str, base: Results, whole: Path, place: Path) -> dict[str, Any]:
    """Reruns and runs anew.

    Args:
        edit: `path=value`.
        base: Results of the run that is edited.
        whole: What it left.
        place: For the data roots.
    """
    project = Project(place, nested(edit))
    try:
        project.start_from(whole)
        rerun = project.run()
        found = results(project.data)
        project.start_from(None)
        plain = project.run()
        wanted = results(project.data)
    finally:
        project.close()
    wrong = [outcome.words[-2_000:] for outcome in (rerun, plain) if outcome.status != 0]
    row = compare(edit, nodes_that_ran(rerun.words), base, found, wanted)
    return {**row, "wrong": wrong}


class Copy:
    """A copy of the project, in which files are edited; each run is a process of its own.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data" / "smoke"
        self.libraries = folder / "libraries"
        for name in ("conf", "src", "data/sample", "plugins/kedro-rerun/src"):
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=hidden)
        shutil.copy(ROOT / "pyproject.toml", folder)
        change_yaml(folder / "conf" / "smoke" / "parameters.yml", PARAMETERS)

    def kedro(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it."""
        paths = [self.libraries, self.folder / "src", self.folder / "plugins/kedro-rerun/src"]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "kedro", *arguments, "--env=smoke"]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def run(self) -> tuple[list[str], list[str]]:
        """The nodes that a run ran, and what went wrong."""
        done = self.kedro("run", "--params=allow_expensive=true")
        words = done.stdout + done.stderr
        return nodes_that_ran(words), [words[-2_000:]] if done.returncode else []

    def stale(self) -> list[str]:
        """The nodes that `status` says are stale."""
        told = self.kedro("mm1", "status", "--json", "--params=allow_expensive=true").stdout
        rows = json.loads(told[told.index("[\n") :])
        return [row["node"] for row in rows if row["state"] != "fresh"]

    def start_from(self, whole: Path | None) -> None:
        """Makes the data root new: nothing, or a copy of another one."""
        shutil.rmtree(self.data, ignore_errors=True)
        if whole is not None:
            shutil.copytree(whole, self.data, symlinks=True)

    def edit(self, edit: FileEdit) -> bytes:
        """Replaces a text in a file; what stood there is given back."""
        path = self.folder / edit.file
        content = path.read_bytes()
        assert edit.before.encode() in content, f"{edit.file} holds no {edit.before!r}"
        is_archive = path.suffix == ".tar"
        assert not is_archive or len(edit.before) == len(edit.after), "headers tell sizes"
        path.write_bytes(content.replace(edit.before.encode(), edit.after.encode(), 1))
        return content

    def install(self, requirement: str) -> None:
        """Puts a library before the installed one."""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, f"--target={self.libraries}", requirement], check=True)


def try_in_copy(copy: Copy, kind: str, name: str, whole: Path, base: Results) -> dict[str, Any]:
    """Edits a file or a library's version, reruns, and runs anew.

    Args:
        copy: Is as it was when this returns.
        kind: `code`, `data` or `library`.
        name: Of the edit.
        whole: What a run before the edit left.
        base: Its results.
    """
    edit = {**CODE_EDITS, **DATA_EDITS}.get(name)
    before = copy.edit(edit) if edit else b""
    if not edit:
        copy.install(LIBRARY_EDITS[name][0])
    try:
        copy.start_from(whole)
        stale = copy.stale()
        ran, wrong = copy.run()
        found = results(copy.data)
        copy.start_from(None)
        _, wrong_anew = copy.run()
        wanted = results(copy.data)
    finally:
        if edit:
            (copy.folder / edit.file).write_bytes(before)
        shutil.rmtree(copy.libraries, ignore_errors=True)
    row = compare(name, ran, base, found, wanted)
    return {**row, "kind": kind, "status": sorted(stale), "wrong": wrong + wrong_anew}


def compare(
    name: str, ran: Iterable[str], base: Results, found: Results, wanted: Results
) -> dict[str, Any]:
    """What an edit did.

    Args:
        name: Of the edit.
        ran: Nodes that did.
        base: Results before it.
        found: Those of the rerun.
        wanted: Those of a plain run.
    """
    names = wanted.keys() | found.keys()
    return {
        "edit": name,
        "kind": "parameter",
        "ran": sorted(ran),
        "changes": sorted(name for name in wanted if wanted[name] != base.get(name)),
        "differs": sorted(name for name in names if found.get(name) != wanted.get(name)),
    }


def main() -> int:
    """Tries the edits; 1 if one did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=sorted(KINDS))
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS.values())))
    parser.add_argument("--results", type=Path, default=Path("edits.jsonl"))
    options = parser.parse_args()
    load_before_the_c_library()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {row["edit"]: row for row in map(json.loads, lines)}
    kinds = options.kinds or set(KINDS.values())
    wanted = options.only or [name for name, kind in KINDS.items() if kind in kinds]
    todo = [name for name in wanted if name not in done]
    place = Path(tempfile.mkdtemp(prefix="mm1-edits-"))
    try:
        for row in _try_all(todo, place):
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done[row["edit"]] = row
            ran = ", ".join(row["ran"]) or "nothing"
            print(f"{len(done)} of {len(wanted)}: {row['edit']}: ran {ran}", flush=True)
    finally:
        shutil.rmtree(place)
    places = places_of_nodes()
    bad = [(row, said) for row in done.values() if (said := judge(row, places))]
    for row, said in bad:
        print(f"{row['edit']}: {'; '.join(said)}")
    print(json.dumps({"edits": len(done), "held": len(done) - len(bad)}))
    return int(bool(bad))


KINDS = {
    **dict.fromkeys(EDITS, "parameter"),
    **dict.fromkeys(CODE_EDITS, "code"),
    **dict.fromkeys(DATA_EDITS, "data"),
    **dict.fromkeys(LIBRARY_EDITS, "library"),
}
"""Of each edit."""


def _try_all(todo: list[str], place: Path) -> Iterator[dict[str, Any]]:
    parameters = [name for name in todo if KINDS[name] == "parameter"]
    others = [name for name in todo if KINDS[name] != "parameter"]
    if parameters:
        import_everything()
        project = Project(place / "whole")
        outcome = project.run()
        assert outcome.status == 0, outcome.words[-3_000:]
        base, whole = results(project.data), project.data
        project.close()
        for name in parameters:
            yield try_edit(name, base, whole, place / "edited")
    if others:
        copy, whole = Copy(place / "copy"), place / "copied"
        _, wrong = copy.run()
        assert not wrong, wrong
        base = results(copy.data)
        copy.data.rename(whole)
        for name in others:
            yield try_in_copy(copy, KINDS[name], name, whole, base)


def nodes_that_changed(row: Mapping[str, Any], places: Places) -> set[str]:
    """The nodes whose outputs a plain run after an edit made others.

    Args:
        row: What was found of the edit.
        places: Outputs and inputs of each node.
    """
    changes = set(row["changes"])
    # The report shows seconds, and so what its inputs took.
    return {
        node
        for node, (outputs, inputs) in places.items()
        if outputs & changes or (node == "write_report" and inputs & changes)
    }


def judge(row: Mapping[str, Any], places: Places) -> list[str]:
    """What was wrong with an edit: all of its nodes ran that had to, and no other.

    Args:
        row: What `try_edit` found.
        places: Outputs and inputs of each node.
    """
    ran, needed = set(row["ran"]), nodes_that_changed(row, places)
    idle = ran - needed
    said = [f"run: {words}" for words in row["wrong"]]
    if row["edit"] not in LOGS:
        said += [f"differs from a plain run: {name}" for name in row["differs"]]
        said += [f"missed: {name}" for name in sorted(needed - ran)]
    # One node may find that its outputs stay: it plans, or is what was edited.
    if len(idle) > 1 or idle & EXPENSIVE:
        said.append(f"ran for nothing: {', '.join(sorted(idle))}")
    if unforeseen := ran - set(FORETOLD[row["edit"]]):
        said.append(f"not foretold: {', '.join(sorted(unforeseen))}")
    return said


if __name__ == "__main__":
    sys.exit(main())
