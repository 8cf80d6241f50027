"""A process of a pool that is gone is named, with the signal and what to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_tasks import die, note

from mm1_pipeline.config.ingest import IngestConfig, SourceConfig
from mm1_pipeline.corpus.engine import Engine
from mm1_pipeline.ground.processes import WorkerPool
from typed_values import entry

CONFIG = IngestConfig(
    sources={"x": entry(SourceConfig, kind="text", format="jsonl", path="x")}, num_workers=2
)


EXPECTED = {
    "SIGKILL": "by the signal SIGKILL, often sent for want of memory, while it",
    "SIGSEGV": "by the signal SIGSEGV while it",
    "SIGTERM": "by the signal SIGTERM while it",
    "exit": "with exit code 7 while it",
}


@pytest.mark.parametrize("how", EXPECTED)
def test_ingest_says_how_a_worker_ended(tmp_path, how):
    engine = Engine(CONFIG)
    tasks = ["sleep", f"{how} {tmp_path / 'pid'}"]
    with pytest.raises(RuntimeError, match=EXPECTED[how]) as error:
        list(engine.run(die, tasks))
    if how != "SIGTERM":  # the pool ends the others so, and one cannot be told from them
        assert f"process {(tmp_path / 'pid').read_text()} ended" in str(error.value)
    assert "finished parts are kept" in str(error.value)


def test_shard_says_how_a_worker_ended(tmp_path):
    from mm1_pipeline.streams.shards import _processes

    with (
        pytest.raises(RuntimeError, match=EXPECTED["SIGKILL"] + " wrote shards") as error,
        _processes(2) as run,
    ):
        list(run(die, ["sleep", f"SIGKILL {tmp_path / 'pid'}"]))
    assert f"process {(tmp_path / 'pid').read_text()} ended" in str(error.value)


def test_a_pool_ends_with_its_parent_even_if_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from mm1_pipeline.ground.processes import WorkerPool
from pool_tasks import say_and_sleep
if __name__ == "__main__":
    list(WorkerPool(2, doing="slept", advice="").run(say_and_sleep, [{str(tmp_path)!r}] * 2))
""")
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    try:
        assert within_a_minute(lambda: len(list(tmp_path.glob("pid*"))) == 2)
        pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    finally:
        process.kill()
        process.wait()
    assert within_a_minute(lambda: not any(is_alive(pid) for pid in pids))


def test_a_pool_that_is_left_by_an_error_takes_no_further_items(tmp_path):
    def leave_after_the_first() -> None:
        with WorkerPool(1, doing="noted", advice="") as pool:
            for _ in pool.run(note, (f"{tmp_path}/{number}" for number in range(100))):
                raise KeyError

    with pytest.raises(KeyError):
        leave_after_the_first()
    assert len(list(tmp_path.iterdir())) < 10  # of those that were handed over


def within_a_minute(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not (is_done := done()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_done


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
