"""Has DVC rerun the same pipeline after the same edits.

    python campaigns/edits.py --results=edits.jsonl
    python campaigns/edits_dvc.py --dvc=/path/to/dvc --results=edits.jsonl

A dvc.yaml is written from the registered pipeline, a stage a node. A stage depends on the outputs
of others that it reads, on the folders of the package that its code reaches (ours, found as
`kedro mm1 status` finds code; by hand they would be the same or more), on the folders of its raw
sources, and on the groups of parameters that its inputs name. Its command is a stand-in: it writes
the outputs that the plain run of `edits.py` made after the edit, that is, others where those were
others, so that DVC stops where a rebuilt output is the same, as it does. `dvc repro` then runs
after each edit of the results; the commands note that they ran. The rows, with what DVC reran,
go into the file of `--output`, and all that docs/staleness.md tells into `--record`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from faults import ROOT
from runs import PARAMETERS, merged

sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from edits_of_parameters import CODE_EDITS, DATA_EDITS, EDITS, RECORD

from edits import nested, nodes_that_changed, places_of_nodes

STAGE = """
import json, pathlib, sys
node, *outputs = sys.argv[1:]
truth = json.loads(pathlib.Path("truth.json").read_text())
for output in outputs:
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = output.removeprefix("data/smoke/")
    path.write_text(name + (truth["edit"] if name in truth["changes"] else ""))
with open("journal", "a") as journal:
    journal.write(node + chr(10))
"""


def code_folders() -> dict[str, list[str]]:
    """The folders of the package that each node's code reaches."""
    from kedro.framework.project import pipelines, settings
    from kedro_rerun.code import CodeIndex
    from kedro_rerun.functions import describe_function

    declared = settings.SESSION_CLASS.staleness_settings
    index = CodeIndex(declared.packages, declared.excluded)
    found: dict[str, list[str]] = {}
    for node in pipelines["__default__"].nodes:
        reached = index.closure(describe_function(node.func).entries).parts
        modules = {tuple(name.partition(":")[0].split(".")) for name in reached}
        folders = {
            "/".join(("src", *parts[: 3 if parts[1:2] == ("pipelines",) else 2]))
            for parts in modules
        }
        found[node.name] = sorted(folder for folder in folders if (ROOT / folder).is_dir())
    return found


def smoke_parameters() -> dict[str, Any]:
    """Those of the cut smoke environment, as Kedro resolves them."""
    from kedro.config import OmegaConfigLoader

    loader = OmegaConfigLoader(
        str(ROOT / "conf"),
        env="smoke",
        base_env="base",
        default_run_env="local",
        merge_strategy={"parameters": "soft"},
    )
    return merged(loader["parameters"], PARAMETERS)


def raw_folders(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """The folders of the sources that each node of `ingest` reads."""
    found: dict[str, set[str]] = {}
    for source in parameters["ingest"]["sources"].values():
        if source.get("split") == "evaluation":
            node = "ingest_evaluation"
        elif source["kind"] == "conversation":
            node = "ingest_conversations"
        else:
            node = "ingest_pretraining"
        path = Path(source["path"])
        folder = path if (ROOT / path).is_dir() else path.parent
        found.setdefault(node, set()).add(str(folder))
    return {node: sorted(folders) for node, folders in found.items()}


def stages(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The stages of dvc.yaml."""
    from kedro.framework.project import pipelines

    places, code, raw = places_of_nodes(), code_folders(), raw_folders(parameters)
    made: dict[str, Any] = {}
    for node in pipelines["__default__"].nodes:
        outputs, inputs = (
            [f"data/smoke/{place}" for place in sorted(p)] for p in places[node.name]
        )
        groups = [name.removeprefix("params:") for name in node.inputs if "params:" in name]
        made[node.name] = {
            "cmd": " ".join([sys.executable, "-S", "stage.py", node.name, *outputs]),
            "deps": [*inputs, *code[node.name], *raw.get(node.name, [])],
            "params": groups,
            "outs": outputs,
        }
    return made


class DvcProject:
    """The pipeline in DVC.

    Args:
        folder: Where it is made.
        dvc: The program.
    """

    def __init__(self, folder: Path, dvc: Path) -> None:
        self.folder, self._dvc = folder, dvc
        self.parameters = smoke_parameters()
        hidden = shutil.ignore_patterns("__pycache__")
        for name in ("src/mm1_pipeline", "data/sample"):
            shutil.copytree(ROOT / name, folder / name, ignore=hidden)
        (folder / "stage.py").write_text(STAGE)
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages(self.parameters)}))
        self._write(self.parameters)
        self.call("init", "--no-scm", "--quiet")
        self.call("config", "core.analytics", "false")
        self.call("config", "core.check_update", "false")

    def call(self, *arguments: str) -> str:
        """Runs DVC; ends the campaign where it fails."""
        own = {
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(self.folder / ".dvc-own"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.folder / ".dvc-own"),
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc-own"),
        }
        done = subprocess.run(
            [str(self._dvc), *arguments],
            cwd=self.folder,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"dvc {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"[-4_000:])
        return done.stdout

    def reproduce(self, edit: str = "", changes: tuple[str, ...] = ()) -> list[str]:
        """The stages whose commands `dvc repro` ran.

        Args:
            edit: What was edited.
            changes: The outputs that are others after it.
        """
        (self.folder / "truth.json").write_text(json.dumps({"edit": edit, "changes": changes}))
        journal = self.folder / "journal"
        journal.write_text("")
        self.call("repro", "--quiet")
        return sorted(journal.read_text().split())

    def try_edit(self, row: Mapping[str, Any]) -> list[str]:
        """Makes an edit, reproduces, and takes it back."""
        name = row["edit"]
        if name in EDITS:
            self._write(merged(self.parameters, nested(name)))
        edit = {**CODE_EDITS, **DATA_EDITS}.get(name)
        path = self.folder / (edit.file if edit else "stage.py")
        before = path.read_bytes()
        if edit:
            path.write_bytes(before.replace(edit.before.encode(), edit.after.encode(), 1))
        ran = self.reproduce(name, tuple(row["changes"]))
        path.write_bytes(before)
        self._write(self.parameters)
        self._restore()
        return ran

    def keep(self) -> None:
        """Remembers the outputs, and what DVC knows of them, as every edit finds them."""
        shutil.copytree(self.folder / "data" / "smoke", self._kept / "smoke")
        shutil.copy(self.folder / "dvc.lock", self._kept)

    def _restore(self) -> None:
        shutil.rmtree(self.folder / "data" / "smoke")
        shutil.copytree(self._kept / "smoke", self.folder / "data" / "smoke")
        shutil.copy(self._kept / "dvc.lock", self.folder)

    @property
    def _kept(self) -> Path:
        return self.folder.with_name("kept")

    def _write(self, parameters: Mapping[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(dict(parameters)))


def main() -> None:
    """Tries every edit of the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dvc", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("edits.jsonl"))
    parser.add_argument("--output", type=Path, default=Path("edits_dvc.jsonl"))
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {json.loads(line)["edit"] for line in lines}
    place = Path(tempfile.mkdtemp(prefix="mm1-edits-dvc-"))
    try:
        project = DvcProject(place / "project", options.dvc)
        assert len(project.reproduce()) == len(places_of_nodes()), "first, every stage runs"
        assert not project.reproduce(), "then none"
        project.keep()
        for row in rows:
            if row["edit"] in done:
                continue
            row["dvc"] = project.try_edit(row)
            with options.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['edit']}: {len(row['dvc'])}", flush=True)
    finally:
        shutil.rmtree(place)
    places = places_of_nodes()
    found = {}
    for row in map(json.loads, options.output.read_text().splitlines()):
        changed = nodes_that_changed(row, places)
        found[row["edit"]] = {"ran": row["ran"], "changed": sorted(changed), "dvc": row["dvc"]}
    options.record.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
