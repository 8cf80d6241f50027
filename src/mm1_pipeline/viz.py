"""The static site of Kedro-Viz, without the paths of the machine that it was built on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BUILT = Path("build")
"""Where Kedro-Viz builds, below the project."""


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
