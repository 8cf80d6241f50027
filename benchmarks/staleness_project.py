"""This project's own pipeline side by side with DVC, where everything is fresh.

    kedro run --env=smoke
    python benchmarks/staleness_project.py smoke [--dvc FOLDER] [--conf-source FOLDER]

DVC gets what our plug-in looks at: a stage a node, with the source files that the node reaches,
the files that it reads, the parameters that it gets (all of a group) and what it writes, copied
into a folder of its own. No stage is run there: `dvc commit` records what is in place. Prints as
`benchmarks/staleness.py --times`; ours are `kedro rerun status` and `kedro run`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.startup import bootstrap_project
from kedro_rerun.cli import open_session
from kedro_rerun.graph import Dataset, Storage
from kedro_rerun.planning import Planner

import staleness

ROOT = Path(__file__).parents[1]


def place_of(dataset: Dataset) -> Path:
    """Where a dataset lies, relative to the project's folder or absolute."""
    return Path(os.path.abspath(dataset.path))


def stages(planner: Planner, folder: Path) -> dict[str, dict[str, Any]]:
    """The nodes as DVC's stages; copies into its folder what they read and write."""
    copied: dict[Path, str] = {}

    def bring(path: Path) -> str:
        """Name of a copy in the folder."""
        path = Path(os.path.abspath(path))
        if path not in copied:
            inside = path.is_relative_to(ROOT)
            name = path.relative_to(ROOT) if inside else Path("outside", *path.parts[1:])
            copied[path] = str(name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, folder / name)
        return copied[path]

    found = {}
    for node in planner.graph.nodes:
        known = [planner.graph.datasets[name] for name in (*node.inputs, *node.outputs)]
        files = [set[str](), set[str]()]
        for place, names in enumerate((node.inputs, node.outputs)):
            for dataset in (planner.graph.datasets[name] for name in names):
                if dataset.storage in (Storage.ARTIFACT, Storage.PATH) and dataset.is_local:
                    files[place].add(bring(place_of(dataset)))
        read = [value for dataset in known for value in places_read(planner, node, dataset)]
        code = planner.reader._closure(node).parts
        modules = {part.partition(":")[0] for part in code}
        files[0] |= {bring(path) for path in map(module_file, sorted(modules)) if path}
        files[0] |= {bring(Path(place)) for place in read if Path(place).exists()}
        names = [item.name for item in known if item.storage is Storage.PARAMETER]
        groups = sorted({name.removeprefix("params:").partition(".")[0] for name in names})
        found[node.name] = {
            "cmd": f"python -m mm1_pipeline run --nodes={node.name}",
            "deps": sorted(name for name in files[0] if (folder / name).exists()),
            "params": groups,
            "outs": sorted(files[1]),
        }
    return found


def places_read(planner: Planner, node: Any, dataset: Dataset) -> list[str]:
    """Local files and folders that a node's parameters name as inputs."""
    if dataset.storage is not Storage.PARAMETER:
        return []
    selections = planner.reader._flatten(node, dataset).inputs().values()
    return [item.place for item in selections if "://" not in item.place]


def module_file(module: str) -> Path | None:
    """Source file of a module of this project."""
    base = ROOT / "src" / Path(*module.split("."))
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def main() -> None:
    """Builds DVC's project from the session's graph, and times both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("env")
    parser.add_argument("--conf-source", type=Path, default=ROOT / "conf")
    parser.add_argument("--dvc", type=Path, help="A virtual environment that has DVC.")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    bootstrap_project(ROOT)
    session = open_session(arguments.env, str(arguments.conf_source))
    planner = session.planner()
    stale = [name for name, verdict in planner.plan().items() if verdict.state != "fresh"]
    if stale:
        sys.exit(f"Found stale nodes: {', '.join(stale)}. Run `kedro run --env={arguments.env}`.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = arguments.dvc or folder / "environment"
        if arguments.dvc is None:
            staleness.install_dvc(environment)
        kedro = str(Path(sys.executable).with_name("kedro"))
        options = [f"--env={arguments.env}", f"--conf-source={arguments.conf_source}"]
        run, status = [kedro, "run", *options], [kedro, "rerun", "status", *options]
        ours = staleness.Project(ROOT, run, status, "", {})
        ours.journal = folder / "journal"
        dvc = staleness.dvc_project(folder / "dvc", environment)
        dvc.folder.mkdir()
        staleness.begin_dvc(dvc, environment)
        described = stages(planner, dvc.folder)
        dvc.write(
            {
                "dvc.yaml": json.dumps({"stages": described}, indent=1),
                "params.yaml": yaml.safe_dump(
                    json.loads(json.dumps(dict(session.load_context().config_loader["parameters"])))
                ),
            }
        )
        dvc.execute([str(environment / "bin" / "dvc"), "commit", "--force", "--quiet"])
        print(json.dumps(staleness.compare_times(ours, dvc)))


if __name__ == "__main__":
    main()
