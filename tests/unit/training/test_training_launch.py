"""The launcher's processes, with stand-ins for workers that start at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mm1_pipeline.training import processes
from mm1_pipeline.training.errors import TrainingStoppedError
from mm1_pipeline.training.nodes import Node
from mm1_pipeline.training.processes import WorkerProcesses

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def workers(monkeypatch, tmp_path):
    def start(code: str, num_processes: int = 2) -> WorkerProcesses:
        prelude = "import json, os, signal, subprocess, sys, time; rank = int(os.environ['RANK'])\n"
        monkeypatch.setattr(processes, "_COMMAND", [sys.executable, "-c", prelude + code])
        return WorkerProcesses(num_processes, "cpu", tmp_path / "logs")

    return start


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends(pid: int) -> bool:
    """A signal is on its way; the kernel needs a moment."""
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def wait_for(file: Path) -> str:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline, file
        time.sleep(0.01)
    return file.read_text()


def test_ranks_know_their_place_and_each_gets_its_order(workers, tmp_path):
    code = f"""
size = int.from_bytes(sys.stdin.buffer.read(8), "big")
open({str(tmp_path / "order")!r} + str(rank), "wb").write(sys.stdin.buffer.read(size))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
open({str(tmp_path)!r} + f"/rank{{rank}}", "w").write(json.dumps([os.environ[n] for n in names]))
"""
    with workers(code) as started:
        started.hand_over(b"the order" * 100_000)
        started.wait()
    for rank in range(2):
        assert (tmp_path / f"order{rank}").read_bytes() == b"the order" * 100_000
        found = json.loads((tmp_path / f"rank{rank}").read_text())
        assert found == [str(rank), str(rank), "2", "2"]


def test_ranks_of_one_machine_listen_at_the_loopback_and_know_no_secret(
    workers, tmp_path, monkeypatch
):
    monkeypatch.setenv("MM1_SECRET", "s" * 40)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    code = f"""
shown = {{name: value for name, value in os.environ.items() if "IFNAME" in name or "MM1" in name}}
open({str(tmp_path)!r} + f"/rank{{rank}}", "w").write(json.dumps(shown))
"""
    with workers(code) as started:
        started.wait()
    shown = json.loads((tmp_path / "rank1").read_text())
    assert shown.pop("MM1_ERROR_FILE")
    assert shown.pop("MM1_STORE_LISTENER") == ""
    assert shown == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def test_a_failing_rank_ends_all_and_is_quoted(workers, tmp_path):
    code = f"""
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
open({str(tmp_path)!r} + f"/pid{{rank}}", "w").write(f"{{os.getpid()}} {{child.pid}}\\n")
if rank == 1:
    while not os.path.exists({str(tmp_path / "pid0")!r}): time.sleep(0.01)
    time.sleep(0.2)
    print("\\x1b[31mit broke", file=sys.stderr)
    sys.exit(7)
{SLEEP}
"""
    with pytest.raises(TrainingStoppedError) as stop, workers(code) as started:
        started.wait()
    assert "Found rank 1 of the training ended with exit code 7" in str(stop.value)
    assert "  it broke\n" in str(stop.value), "without control codes"
    for rank in range(2):
        for pid in wait_for(tmp_path / f"pid{rank}").split():
            assert ends(int(pid)), "data workers too"


def test_a_killed_rank_is_told_with_its_signal(workers):
    code = f"os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else None\n{SLEEP}"
    with workers(code) as started:
        started.hand_over(b"never read" * 100_000)
        with pytest.raises(TrainingStoppedError, match=r"rank 0 .* by the signal SIGKILL .*memory"):
            started.wait()


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("ValueError", ValueError),
        ("TrainingStoppedError", TrainingStoppedError),
        ("KeyError", TrainingStoppedError),
    ],
)
def test_errors_for_users_come_as_they_are_and_the_first_counts(workers, kind, raised):
    code = f"""
if rank == 0: time.sleep(0.3)
details = {{"kind": {kind!r} if rank else "RuntimeError", "message": "Found this."}}
json.dump(details, open(os.environ["MM1_ERROR_FILE"], "w"))
print("Traceback of", rank, flush=True)
sys.exit(1)
"""
    with workers(code) as started:
        time.sleep(1.0)  # both have failed by now
        with pytest.raises(raised) as stop:
            started.wait()
    assert type(stop.value) is raised
    expected = "Traceback of 1" if kind == "KeyError" else "Found this."
    assert expected in str(stop.value)


TERMINATED = {
    "with a step": """
def end(*_):
    details = {"kind": "TrainingTerminatedError", "message": "stopped after step 7"}
    json.dump(details, open(os.environ["MM1_ERROR_FILE"], "w"))
    os._exit(143)
signal.signal(signal.SIGTERM, end)
""",
    "before the first": "",
    "too late": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))",
}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (TERMINATED["with a step"], "stopped after step 7"),
        (TERMINATED["before the first"], "stopped by SIGTERM before the first step"),
    ],
)
def test_a_wish_to_end_goes_to_every_rank_and_is_told_with_its_status(
    workers, tmp_path, code, message
):
    with workers(code + ready(tmp_path)) as started:
        with pytest.raises(SystemExit, match=message) as end:
            started.wait(ask_to_end_when_ready(tmp_path))
        assert end.value.code == 143
        for rank in range(2):
            assert ends(int(wait_for(tmp_path / f"pid{rank}"))), "each was asked"


def test_a_wish_to_end_that_finds_all_done_is_passed_on(workers, tmp_path):
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    try:
        with workers(TERMINATED["too late"] + ready(tmp_path)) as started:
            started.wait(ask_to_end_when_ready(tmp_path))
        assert found == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def ready(folder: Path) -> str:
    return f"\nopen({str(folder)!r} + f'/pid{{rank}}', 'w').write(f'{{os.getpid()}}\\n')\n{SLEEP}"


def ask_to_end_when_ready(folder: Path) -> Callable[[], None]:
    """To be called while ranks are waited for; then this process gets a SIGTERM, once."""
    asked = []

    def ask() -> None:
        files = [folder / f"pid{rank}" for rank in range(2)]
        if not asked and all(file.exists() and file.read_text() for file in files):
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def test_what_rank_0_shows_is_shown_and_kept(workers, tmp_path, capfd):
    code = 'print(f"progress of {rank}", file=sys.stderr); print(f"said by {rank}")'
    with workers(code) as started:
        started.wait()
    shown = capfd.readouterr().err
    assert "progress of 0" in shown
    assert "progress of 1" not in shown
    for rank in range(2):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert f"progress of {rank}" in log
        assert f"said by {rank}" in log


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_do_not_outlive_the_one_that_started_them(tmp_path, how):
    """Ctrl-C, and a kill that leaves no time for anything."""
    worker = f"""
import os, sys, time
from mm1_pipeline.ground.processes import end_with_parent
end_with_parent(sys.stdin.buffer)
open({str(tmp_path)!r} + "/pid" + os.environ["RANK"], "w").write(f"{{os.getpid()}}\\n")
{SLEEP}
"""
    parent = f"""
import signal, sys
from pathlib import Path
from mm1_pipeline.training import processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
processes._COMMAND = [sys.executable, "-c", {worker!r}]
with processes.WorkerProcesses(2, "cpu", Path({str(tmp_path / "logs")!r})) as workers:
    workers.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    pids = [int(wait_for(tmp_path / f"pid{rank}")) for rank in range(2)]
    assert all(is_alive(pid) for pid in pids)
    process.send_signal(how)
    process.wait(timeout=20)
    assert all(ends(pid) for pid in pids)


def test_the_second_node_continues_the_count(monkeypatch, tmp_path):
    code = f"""
import os
names = ("LOCAL_RANK", "WORLD_SIZE", "GLOO_SOCKET_IFNAME")
folder = {str(tmp_path)!r} + "/rank" + os.environ["RANK"]
open(folder, "w").write(" ".join(os.environ[n] for n in names))
"""
    monkeypatch.setattr(processes, "_COMMAND", [sys.executable, "-c", code])
    node = Node(rank=1, count=2, address="10.0.0.1", port=29500)
    with WorkerProcesses(2, "cpu", tmp_path / "logs", node=node, interface="eth7") as started:
        started.wait()
    assert (tmp_path / "rank2").read_text() == "0 4 eth7"
    assert (tmp_path / "rank3").read_text() == "1 4 eth7"
    assert not os.path.exists(tmp_path / "rank0")


def test_what_is_looked_after_meanwhile_may_end_the_wait(workers):
    def check():
        raise TrainingStoppedError("node 1 has gone")

    with workers(SLEEP) as started, pytest.raises(TrainingStoppedError, match="node 1 has gone"):
        started.wait(check)
