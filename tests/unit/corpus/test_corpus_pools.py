"""A process of a pool that is gone is named, with the signal and what to do."""

from __future__ import annotations

import pytest
from pool_tasks import die

from mm1_pipeline.config.ingest import IngestConfig, SourceConfig
from mm1_pipeline.corpus.engine import Engine

CONFIG = IngestConfig(
    sources={"x": SourceConfig(kind="text", format="jsonl", path="x")}, num_workers=2
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
