"""kill -9 anywhere: the old version stays whole, and the next run ends as if nothing happened."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kedro.io import DatasetError

from kedro_rerun import artifacts
from kedro_rerun.artifacts import current, sweep, verify
from kedro_rerun.run_lock import STATE_FOLDER, WhenBusy, hold_run_lock
from staleness_dummy import DummyProject
from test_staleness_artifacts import A, B, make
from test_staleness_edits import read_outputs

pytestmark = pytest.mark.slow

STEPS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "open")
COMPLETED = 0


def start(action: Callable[[], object], fatal_step: int = 0) -> int:
    """Runs an action in a forked process, which kills itself before a step on the disk."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if fatal_step:
            _die_at(fatal_step)
        action()
        os._exit(COMPLETED)
    except BaseException:
        os._exit(1)


def _die_at(fatal_step: int) -> None:
    steps = 0

    def dying(function):
        def step(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == fatal_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))


def wait(pid: int) -> int:
    """Exit status of a forked process; negative for the signal that killed it."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (COMPLETED, -signal.SIGKILL), "the action itself failed"
    return code


def text_of(artifact: artifacts.Artifact) -> str:
    assert verify(artifact, deep=True) == []
    return (artifact / "part/data.txt").read_text()


def test_a_kill_at_any_step_of_publishing_leaves_a_whole_version(tmp_path):
    num_kills = 0
    for fatal_step in range(1, 1000):
        root = tmp_path / str(fatal_step)
        make(root, A, "old")
        code = wait(start(lambda root=root: make(root, B, "new"), fatal_step))
        # Before anything is repaired, a reader finds a whole version.
        found = current(root)
        assert found is not None
        assert text_of(found) in ("old", "new")
        sweep(root)
        assert not list((root / ".staging").iterdir())
        assert text_of(make(root, B, "new")) == "new"
        if code == COMPLETED:
            break
        num_kills += 1
    assert num_kills > 14


def test_a_kill_at_any_step_of_replacing_a_version_leaves_a_whole_one(tmp_path):
    num_kills = 0
    for fatal_step in range(1, 1000):
        root = tmp_path / str(fatal_step)
        make(root, A, "old")
        code = wait(start(lambda root=root: make(root, A, "new"), fatal_step))
        sweep(root)
        found = current(root)
        assert found is not None
        assert text_of(found) in ("old", "new")
        assert not list((root / ".staging").iterdir())
        assert text_of(make(root, A, "new")) == "new"
        if code == COMPLETED:
            break
        num_kills += 1
    assert num_kills > 14


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    project = DummyProject(tmp_path_factory.mktemp("undisturbed"))
    project.run()
    return read_outputs(project)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> DummyProject:
    """A project of which an earlier version of everything is published."""
    project = DummyProject(tmp_path_factory.mktemp("earlier") / "project")
    project.set("ingest", drop=("t",))
    project.run()
    project.set("ingest", drop=("#",))
    return project


def assert_tidy(project: DummyProject) -> None:
    """No staging folder, progress or half-written file of a dead process is left."""
    assert not list(project.data_root.glob("*/.staging/*"))
    assert not list(project.data_root.glob("*/.work/*/*"))
    assert not list(project.data_root.rglob("*.tmp"))


def test_a_kill_at_any_step_of_a_run_changes_no_result(tmp_path, earlier, undisturbed):
    """Steps of the whole run, a prime apart so that each kind of step is met."""
    killed = 0
    for fatal_step in range(1, 4096, 7):
        project = earlier.copy_to(tmp_path / str(fatal_step))
        code = wait(start(project.run, fatal_step))
        project.run()
        assert read_outputs(project) == undisturbed, f"killed before step {fatal_step}"
        assert project.run() == []
        assert_tidy(project)
        if code == COMPLETED:
            break
        killed += 1
    assert killed > 20


def test_kills_at_12_random_moments_change_no_result(tmp_path, earlier, undisturbed):
    """Kills until 12 have hit a run at work: on a busy machine some come after its end."""
    moments = random.Random(5)
    project = earlier.copy_to(tmp_path / "timed")
    started = time.perf_counter()
    assert wait(start(project.run)) == COMPLETED
    duration = 0.9 * (time.perf_counter() - started)
    killed = attempt = 0
    while killed < 12:
        attempt += 1
        assert attempt <= 60, f"only {killed} of {2 * attempt} kills hit a run at work"
        project = earlier.copy_to(tmp_path / str(attempt))
        for _ in range(2):  # Also a kill while recovering from a kill.
            pid = start(project.run)
            time.sleep(moments.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
            killed += wait(pid) != COMPLETED
        project.run()
        assert read_outputs(project) == undisturbed
        assert project.run() == []
        assert_tidy(project)


def test_training_resumes_from_its_progress(tmp_path):
    project = DummyProject(tmp_path)
    project.edit(
        "training.py", "for step in range(len(rows)", "for step in stop(rows) or range(len(rows)"
    )
    project.edit(
        "training.py",
        "def fit(",
        "def stop(rows):\n    if len(rows) == 0: return range(7)\n\ndef fit(",
    )
    project.edit(
        "training.py",
        "return json.dumps(",
        "if len(rows) < 20: raise OSError('power')\n    return json.dumps(",
    )
    with pytest.raises(OSError, match="power"):
        project.run()
    row = project.status()["train"]
    assert row.interrupted
    (work,) = (project.data_root / "model" / ".work").glob("*/rows.json")
    assert work.read_text().count("loss") == 7
    assert project.run() == ["train", "evaluate", "report"]
    assert not work.parent.exists()


def test_progress_stays_when_a_later_output_cannot_be_saved(tmp_path):
    project = DummyProject(tmp_path)
    in_the_way = project.data_root / "08_reporting" / "training_log.json"
    in_the_way.mkdir(parents=True)
    with pytest.raises(DatasetError, match="training_log"):
        project.run()
    assert current(project.data_root / "model") is not None
    (rows,) = (project.data_root / "model" / ".work").glob("*/rows.json")
    in_the_way.rmdir()
    assert project.run() == ["train", "evaluate", "report"]
    assert not rows.exists()


def test_another_fingerprint_does_not_resume(tmp_path):
    project = DummyProject(tmp_path)
    project.edit(
        "training.py", "return json.dumps(", "raise OSError('power')\n    return json.dumps("
    )
    for lr in (1.0, 2.0):
        project.set("train", optimizer={"lr": lr})
        with pytest.raises(OSError, match="power"):
            project.run()
    progress = sorted((project.data_root / "model" / ".work").glob("*/rows.json"))
    assert len(progress) == 2
    assert progress[0].read_text() != progress[1].read_text()


def test_two_runs_at_once_do_each_node_once(tmp_path, undisturbed):
    project = DummyProject(tmp_path)
    log = tmp_path / "ran"
    project.edit("nodes.py", '"""Nodes."""', f'"""Nodes."""\nLOG = {str(log)!r}')
    for node in ("ingest(config: Ingest)", "train(config: Train, shards)"):
        body = f"def {node}:\n    with open(LOG, 'a') as file: file.write('x')\n"
        project.edit("nodes.py", f"def {node}:\n", body)
    pids = [start(project.run) for _ in range(3)]
    assert [wait(pid) for pid in pids] == [COMPLETED] * 3
    assert log.read_text() == "xx"
    assert read_outputs(project) == undisturbed


def test_a_second_run_may_refuse_to_wait(tmp_path):
    project = DummyProject(tmp_path)
    project.switches["when_busy"] = "refuse"
    told = []
    with (
        hold_run_lock(project.data_root),
        pytest.raises(ValueError, match=rf"another run in progress \(process {os.getpid()} on"),
    ):
        project.run()
    pid = start(lambda: _hold(project.data_root, 1))
    lock = project.data_root / STATE_FOLDER / "run.lock"
    while f'"pid": {pid},' not in lock.read_text():  # It is held a moment before it says by whom.
        time.sleep(0.01)
    with hold_run_lock(project.data_root, tell=told.append):
        pass
    assert wait(pid) == COMPLETED
    assert len(told) == 1
    assert f"(process {pid} on" in told[0]


def test_the_lock_dies_with_its_process_even_when_a_child_lives_on(tmp_path):
    def hold_with_a_child() -> None:
        with hold_run_lock(tmp_path):
            start(lambda: time.sleep(3))
            time.sleep(60)

    pid = start(hold_with_a_child)
    while not _is_held(tmp_path):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    with hold_run_lock(tmp_path, WhenBusy.REFUSE):
        pass


def _hold(data_root: Path, seconds: float) -> None:
    with hold_run_lock(data_root):
        time.sleep(seconds)


def _is_held(data_root: Path) -> bool:
    try:
        with hold_run_lock(data_root, WhenBusy.REFUSE):
            return False
    except ValueError:
        return True


def test_going_back_after_an_interrupted_run_needs_no_rerun(tmp_path, undisturbed):
    project = DummyProject(tmp_path)
    project.run()
    project.set("evaluate", shots=8)
    project.edit("reporting.py", "return", "raise OSError('power')\n    return")
    with pytest.raises(OSError, match="power"):
        project.run()
    (project.data_root / "08_reporting" / "report.json").write_text("half of")
    project.set("evaluate", shots=4)
    project.edit("reporting.py", "raise OSError('power')\n    return", "return")
    assert project.run() == []
    assert read_outputs(project) == undisturbed
