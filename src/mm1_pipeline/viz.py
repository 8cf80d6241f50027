"""What Kedro-Viz shows: stages that open and close, and no path of the machine it was built on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from mm1_pipeline import pipeline_registry

GROUPS = {
    "data": ("ingest", "synthesize", "shard"),
    "training": ("vision_pretrain", "text_pretrain", "pretrain", "upcycle", "sft"),
    "results": ("evaluate", "report"),
}
"""Stages by the box that holds them. All boxes are closed at first sight, and what passes between
them lies outside; a box for each stage would leave all reports outside, 38 boxes instead of 24."""

_BUILT = Path("build")
"""Where Kedro-Viz builds, below the project."""


class GroupedNode(Node):
    """A node in a namespace that is no part of its name.

    Names stand in records of runs, on command lines and in what Kedro-Viz tells to type.
    """

    @property
    def name(self) -> str:
        """As the pipeline gives it."""
        return self._name or self._func_name


def register_pipelines() -> dict[str, Pipeline]:
    """The project's pipelines, their stages in namespaces, which Kedro-Viz shows as boxes."""
    boxes = {stage: f"{group}.{stage}" for group, names in GROUPS.items() for stage in names}

    def grouped(node: Node) -> Node:
        box = next((boxes[tag] for tag in sorted(node.tags) if tag in boxes), None)
        # Inputs and outputs as they were given, as its id in Kedro-Viz is made of them.
        return GroupedNode(
            node.func, node._inputs, node._outputs, name=node.name, tags=node.tags, namespace=box
        )

    found = pipeline_registry.register_pipelines()
    return {name: Pipeline(map(grouped, whole.nodes)) for name, whole in found.items()}


def build_site(project: Path, data_root: Path, env: str | None) -> Path:
    """Has Kedro-Viz build its static site with previews, and takes the machine's paths out of it.

    Args:
        project: The project's folder.
        data_root: Of the environment; its path becomes `data_root`.
        env: The environment; None is the default one.

    Returns:
        The site's folder.

    Raises:
        RuntimeError: Kedro-Viz failed; what it said.
    """
    command = [sys.executable, "-m", "kedro", "viz", "build", "--include-previews"]
    done = subprocess.run(  # noqa: S603
        command,
        cwd=project,
        env={**os.environ, **({} if env is None else {"KEDRO_ENV": env})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kedro viz build failed:\n{done.stdout}{done.stderr}"[-4_000:])
    site = project / _BUILT
    remove_paths(site, {data_root: "data_root", project: "."})
    return site


def remove_paths(site: Path, places: Mapping[Path, str]) -> None:
    """Takes the paths of this machine out of a static site's answers.

    Args:
        site: What `kedro viz build` left.
        places: What stands for a folder; longer paths first win. Of a `filepath` elsewhere only
            the last name stays.
    """
    named = {**places, Path.home(): "~"}
    ordered = sorted(named.items(), key=lambda item: -len(str(item[0])))

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [plain(inner, key) for inner in value]
        if not isinstance(value, str):
            return value
        for folder, word in ordered:
            value = re.sub(rf"{re.escape(str(folder))}(?=[/\\\s\"'<&,:;)]|$)", word, value)
        if key == "filepath" and Path(value).is_absolute():
            return Path(value).name
        return value

    for path in sorted((site / "api").rglob("*")):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(plain(content)), encoding="utf-8")
