"""Two nodes that train together, and strangers who reach the same network.

Before, ranks ran `pickle.loads(store.get("job"))` from a port that anyone could write to.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_training_ranks import TRAINING, assert_equal, objective_of, rows_of, train_alone
from training_strangers import harass, listening
from training_toy import write_toy_shards

from mm1_pipeline.config.training import ScheduleConfig
from mm1_pipeline.training import launch

CONFIG = dataclasses.replace(
    TRAINING, schedule=ScheduleConfig(num_steps=8, warmup_steps=4), num_processes=1
)
CLONE_NEWNET = 0x40000000
PORT = 29_531

pytestmark = pytest.mark.skipif(
    not Path("/proc/net/tcp").exists(), reason="sockets are looked up as Linux shows them"
)


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy"))


def ip(*arguments: str) -> bool:
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def machines(tmp_path) -> Iterator[tuple[Machines, list[str]]]:
    """Two network namespaces, joined by a cable, and their addresses; the second has a stranger."""
    names = [f"mm1-{os.getpid()}-{number}" for number in (1, 2)]
    if os.geteuid() or shutil.which("ip") is None or not ip("netns", "add", names[0]):
        pytest.skip("needs root, iproute2 and leave to make network namespaces")
    try:
        assert ip("netns", "add", names[1])
        cable = ("link", "add", "mm1a", "netns", names[0], "type", "veth")
        assert ip(*cable, "peer", "name", "mm1b", "netns", names[1])
        for number, (name, device) in enumerate(zip(names, ("mm1a", "mm1b"), strict=True), 1):
            assert ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", device)
            assert ip("-n", name, "link", "set", device, "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        run = Machines(names, tmp_path)
        yield run, ["10.77.0.1", "10.77.0.2"]
        run.end()
    finally:
        for name in names:
            ip("netns", "delete", name)


class Machines:
    """Starts functions on the one or the other machine, in forked processes: imports take long."""

    def __init__(self, namespaces: list[str], folder: Path) -> None:
        self._namespaces, self._folder = namespaces, folder
        self._pids: list[int] = []

    def start(self, number: int, log: str, function: Callable[[], object], **variables: str) -> int:
        pid = os.fork()
        if pid:
            self._pids.append(pid)
            return pid
        code = 1
        try:
            with (self._folder / log).open("wb", buffering=0) as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            self._enter(self._namespaces[number])
            temporary = self._folder / f"tmp{number}"
            temporary.mkdir(exist_ok=True)
            tempfile.tempdir = str(temporary)
            os.environ.update({**variables, "TMPDIR": str(temporary)})
            torch.set_num_threads(1)
            function()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    @staticmethod
    def _enter(namespace: str) -> None:
        """A network of its own, as another machine has."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{namespace}") as place:
            assert libc.setns(place.fileno(), CLONE_NEWNET) == 0

    def wait(self, pid: int) -> int:
        self._pids.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def end(self) -> None:
        for pid in self._pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


@pytest.mark.timeout(240)
def test_two_nodes_train_as_one_and_strangers_are_left_out(
    shards_dir, tmp_path, machines, monkeypatch
):
    """A wrong secret and none, before; then every port of both nodes is harassed as it opens."""
    run, addresses = machines
    rows = train_alone(CONFIG, objective_of(shards_dir), shards_dir, tmp_path / "alone")
    objective = objective_of(shards_dir)
    marker, secret = tmp_path / "ran", secrets.token_hex(32)
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.setattr("sys.argv", ["launch", "--wait-seconds=60"])
    where = {"NNODES": "2", "MASTER_ADDR": addresses[0], "MASTER_PORT": str(PORT)}
    lead, joins = {**where, "NODE_RANK": "0"}, {**where, "NODE_RANK": "1"}
    leader = run.start(
        0,
        "leader.log",
        lambda: train_alone(CONFIG, objective, shards_dir, tmp_path),
        **lead,
        MM1_SECRET=secret,
    )
    while not (seen := listening(leader)):
        assert os.waitpid(leader, os.WNOHANG) == (0, 0), (tmp_path / "leader.log").read_text()
        time.sleep(0.02)
    assert seen == {(addresses[0], PORT)}
    run.wait(run.start(1, "attack.log", lambda: harass(addresses[0], PORT, marker)))
    for name, variables, expected in (
        ("wrong", {"MM1_SECRET": "w" * 64}, "the secrets differ"),
        ("none", {}, "neither MM1_SECRET_FILE nor MM1_SECRET"),
    ):
        refused = run.start(1, f"{name}.log", launch.main, **joins, **variables)
        assert run.wait(refused) == 1
        assert expected in (tmp_path / f"{name}.log").read_text()
    joiner = run.start(
        1, "joiner.log", launch.main, **joins, MM1_SECRET_FILE=str(tmp_path / "secret")
    )
    stranger = run.start(1, "attack.log", lambda: attack(leader, joiner, marker, tmp_path / "seen"))
    logs = [tmp_path / f"{name}.log" for name in ("leader", "joiner")]
    codes = [run.wait(joiner), run.wait(leader)]
    texts = "\n".join(log.read_text() for log in logs)
    assert codes == [0, 0], texts
    run.wait(stranger)
    shown = {line.split()[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert shown == set(addresses), "each node listens where the other reaches it only"
    assert not marker.exists()
    assert secret not in texts
    assert_equal(rows_of(tmp_path / "work"), rows)


def attack(leader: int, joiner: int, marker: Path, seen_file: Path) -> None:
    """Harasses each port that opens until both are gone, and notes which there were."""
    seen: set[tuple[str, int]] = set()
    while (places := listening(leader) | listening(joiner)) or not seen or alive(leader):
        for place in places - seen:
            seen.add(place)
            harass(*place, marker)
        time.sleep(0.05)
    seen_file.write_text("".join(f"{address} {port}\n" for address, port in sorted(seen)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
