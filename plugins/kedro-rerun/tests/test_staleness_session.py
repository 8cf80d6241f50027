"""The same through `kedro run` in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from staleness_kedro import make_kedro_project


@pytest.fixture
def project(tmp_path) -> Path:
    return make_kedro_project(tmp_path)


def kedro(project: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "kedro", "run", *arguments]
    environment = {**os.environ, "COLUMNS": "300", "DO_NOT_TRACK": "1"}
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(project: Path, *arguments: str, fails: bool = False) -> tuple[list[str], str]:
    process = kedro(project, *arguments)
    output, _ = process.communicate(timeout=280)
    assert (process.returncode != 0) == fails, output
    return [
        line.split("Running ")[1].split(":")[0]
        for line in output.splitlines()
        if "Running " in line and "Running node" not in line
    ], output


ALL = ["ingest", "shard", "summary", "train", "evaluate", "report"]


@pytest.mark.slow
def test_kedro_run_skips_and_named_runners_do_not(project):
    assert sorted(run(project)[0]) == sorted(ALL)
    ran, output = run(project)
    assert ran == []
    assert "Ran 0 of 6 nodes" in output
    assert run(project, "--params", "train.steps=3")[0] == ["train", "evaluate", "report"]
    assert run(project)[0] == []
    assert run(project, "--pipelines", "train")[0] == []
    assert run(project, "--pipelines", "train", "--runner", "SequentialRunner")[0] == [
        "ingest",
        "shard",
        "train",
    ]
    assert run(project)[0] == []


def test_environments_have_roots_of_their_own(project):
    run(project, "--pipelines", "train")
    assert run(project, "--env", "other", "--pipelines", "train")[0] == ["ingest", "shard", "train"]
    assert (project / "data" / "other" / "model" / "CURRENT").exists()
    assert run(project, "--pipelines", "train")[0] == []


def test_the_guard_and_its_switch(project):
    run(project)
    layers = project / "src" / "dummy" / "layers.py"
    layers.write_text(layers.read_text().replace("2.0", "4.0"))
    _, output = run(project, fails=True)
    assert "--params=allow_expensive=true" in output
    assert run(project, "--params", "allow_expensive=true")[0] == ["train", "report"]


def test_a_killed_run_is_taken_up_by_the_next(project):
    nodes = project / "src" / "dummy" / "nodes.py"
    text = nodes.read_text()
    nodes.write_text(text.replace("from dummy.training import fit", "import time; time.sleep(30)"))
    process = kedro(project)
    waiting = project / "data" / "base" / ".staleness" / "train.json"
    while not waiting.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads(waiting.read_text())["attempt"] is not None
    nodes.write_text(text)
    assert run(project)[0] == ["train", "evaluate", "report"]


SCRIPT = """
import sys
from pathlib import Path
from kedro.framework.project import settings
from kedro.framework.startup import bootstrap_project
from kedro_rerun import maintenance

bootstrap_project(Path.cwd())
with settings.SESSION_CLASS.create() as session:
    rows = maintenance.status(session.planner())
assert session.known_nodes() == {row.node for row in rows}
heavy = {"torch", "composer", "streaming", "pandas", "numpy", "dummy.training"} & set(sys.modules)
print(maintenance.exit_code(rows), sorted(heavy))
"""


def test_status_and_idle_runs_import_nothing_that_nodes_need(project):
    run(project)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=project, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "0 []"
