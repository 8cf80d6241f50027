"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]

# As the Makefile has it: Kedro would send statistics, and say so in front of what commands print.
os.environ.setdefault("DO_NOT_TRACK", "1")

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


# Folders, files and functions whose tests are marked `slow`; benchmarks/slow_tests.py writes it.
SLOW = frozenset(
    line
    for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a fast test are not even imported, which takes longer than fast tests do."""
    if config.getoption("markexpr") != "not slow" or not collection_path.is_relative_to(ROOT):
        return None
    name = collection_path.relative_to(ROOT).as_posix()
    return True if name in SLOW or f"{name}/" in SLOW else None


# Before pytest's own, which leaves out what is not asked for.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(ROOT):
            continue
        file = item.path.relative_to(ROOT)
        folders = {f"{folder.as_posix()}/" for folder in file.parents}
        function = getattr(item, "originalname", item.name)
        owners = [cls.name for cls in item.listchain() if isinstance(cls, pytest.Class)]
        places = {file.as_posix(), "::".join((file.as_posix(), *owners, function)), *folders}
        if not SLOW.isdisjoint(places):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test draws the same numbers whichever tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def needs_composer() -> None:
    """Skips where Composer is not installed, and nowhere else.

    It is not imported for that: without `mcli` its import fails, but for the project's own.
    """
    if importlib.util.find_spec("composer") is None:
        pytest.skip("Composer is not installed (it is a part of the pinned stack)")


@pytest.fixture(scope="module", params=["composer", "torch"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each loop that trains; Composer's only where Composer is installed."""
    if request.param == "composer":
        request.getfixturevalue("needs_composer")
    return request.param


@dataclass(frozen=True)
class SmokeProject:
    """The project with the smoke environment's configuration and a data root of its own."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def reports(self) -> Path:
        return self.data / "08_reporting"

    def command(self, *arguments: str) -> list[str]:
        kedro = [sys.executable, "-m", "kedro"]
        return [*kedro, *arguments, "--env=smoke", f"--conf-source={self.folder / 'conf'}"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        return subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=280)
        return process.returncode, output

    def set_parameters(self, **groups: Any) -> None:
        path = self.folder / "conf" / "smoke" / "parameters.yml"
        path.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), groups)))


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: merge(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **changes, **nested}


@pytest.fixture
def smoke_project(tmp_path: Path) -> SmokeProject:
    return make_smoke_project(tmp_path)


@pytest.fixture(scope="session")
def make_smoke() -> Callable[[Path], SmokeProject]:
    return make_smoke_project


def make_smoke_project(folder: Path) -> SmokeProject:
    shutil.copytree(ROOT / "conf", folder / "conf")
    path = folder / "conf" / "smoke" / "globals.yml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "data_root": str(folder / "data")}))
    return SmokeProject(folder)
