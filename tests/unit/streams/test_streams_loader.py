"""The loader delivers the snapshot: whole, in order, resumed, on any number of ranks."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming.base.constant import RESUME
from streaming.base.dataset import _ShardState
from streaming.base.shared import SharedMemory, _get_path

from mm1_pipeline.config.training import MixtureConfig, StreamMixture
from mm1_pipeline.streams.leftovers import remove_leftovers
from mm1_pipeline.streams.loader import (
    MixtureLoader,
    build_loader,
    build_validation_loader,
    read_sequences,
)
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shared_memory import blocks_of, remove_blocks_of

BATCH_SIZE, NUM_STEPS = 20, 7

MIXTURE = MixtureConfig(
    streams={
        "caption": StreamMixture(share=0.45, sources={"pairs": 2.0, "few_pairs": 1.0}),
        "interleaved": StreamMixture(share=0.45, sources={"pages": 1.0}),
        "text": StreamMixture(share=0.1, sources={"books": 1.0}),
    }
)


def loader_of(shards_dir: Path, **options: Any) -> MixtureLoader:
    defaults = {"num_steps": NUM_STEPS, "global_batch_size": BATCH_SIZE, "seed": 5}
    return build_loader(shards_dir, MIXTURE, **{**defaults, **options})


def rows_of(batches: Iterable[dict[str, Any]]) -> list[list[bytes]]:
    """The tokens of each row of each batch, which name a sequence of these shards."""
    return [[row.numpy().tobytes() for row in batch["input_ids"]] for batch in batches]


@pytest.fixture(scope="module")
def expected(shards_dir: Path) -> list[list[bytes]]:
    """What the snapshot says, read directly from the shards."""
    snapshot = MixtureSnapshot.of_shards(
        MIXTURE, shards_dir, num_steps=NUM_STEPS, global_batch_size=BATCH_SIZE, seed=5
    )
    by_source = [
        [
            sample["input_ids"].astype(np.int64).tobytes()
            for sample in read_sequences(shards_dir / source / "train")
        ]
        for source in snapshot.source_names
    ]
    everything = [row for rows in by_source for row in rows]
    assert len(set(everything)) == len(everything), "rows that cannot be told apart"
    return [
        [by_source[source][sample] for source, sample in zip(*snapshot.batch(step), strict=True)]
        for step in range(NUM_STEPS)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_snapshot_in_order(
    shards_dir: Path, expected: list[list[bytes]], num_workers: int
) -> None:
    loader = loader_of(shards_dir, num_workers=num_workers)
    assert len(loader) == NUM_STEPS
    assert rows_of(loader) == expected
    assert loader.delivered_steps == NUM_STEPS


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [0, 3, NUM_STEPS])
def test_a_resumed_loader_delivers_exactly_the_rest(
    shards_dir: Path, expected: list[list[bytes]], num_workers: int, step: int
) -> None:
    first = loader_of(shards_dir, num_workers=num_workers)
    delivered = rows_of(batch for _, batch in zip(range(step), first, strict=False))
    # What Composer saves: the samples it has trained on, though workers have read ahead.
    state = first.dataset.state_dict(step * BATCH_SIZE, from_beginning=True)
    second = loader_of(shards_dir, num_workers=num_workers)
    second.dataset.load_state_dict(json.loads(json.dumps(state)))
    assert second.expected_steps == NUM_STEPS - step
    assert delivered + rows_of(second) == expected


def test_samples_know_their_stream_and_records(shards_dir: Path) -> None:
    batch = next(iter(loader_of(shards_dir)))
    streams = ["caption", "interleaved", "text"]
    by_source = {"pairs": 0, "few_pairs": 0, "pages": 1, "books": 2}
    assert torch.bincount(batch["stream_ids"]).tolist() == [9, 9, 2]
    for stream, key in zip(batch["stream_ids"].tolist(), batch["sample_keys"], strict=True):
        source, records = key.split(": ")
        assert by_source[source] == stream, streams[stream]
        assert all(name.startswith(f"{source}-") for name in records.split(", "))


def test_what_a_killed_reader_leaves_goes(shards_dir, tmp_path, monkeypatch):
    """Shared memory, locks, uncompressed shards and folder of a real one; not those of another."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive = loader_of(shards_dir)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        loader = loader_of(shards_dir, num_workers=2)
        batches = iter(loader)
        next(batches)
        os.write(writing, f"{loader.dataset._shm_prefix_int:06}".encode())
        time.sleep(60)
        os._exit(1)
    number = os.read(reading, 100).decode()
    os.killpg(child, signal.SIGKILL)  # with the processes that read for it
    os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        for _ in range(1000):
            os.killpg(child, 0)  # until the last of them is gone, which nobody here waits for
            time.sleep(0.01)

    def left() -> list[Path]:
        folders = [Path("/dev/shm"), tmp_path]
        return [path for folder in folders for path in folder.glob(f"{number}_*")]

    assert len(left()) >= 6
    assert len(list(tmp_path.glob("mm1-cache-*"))) == 2
    for lock in tmp_path.glob("mm1-cache-*/*.alive"):
        os.utime(lock, (0, 0))
    removed = {path for path, _ in remove_leftovers()}
    assert set(left()) == set()
    assert len(removed) >= 6
    assert len(list(tmp_path.glob("mm1-cache-*"))) == 1
    assert len(rows_of(alive)) == NUM_STEPS


def read_as_rank(
    rank: int, size: int, port: int, shards_dir: Path, cache_dir: Path, state: dict, queue: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    loader = loader_of(shards_dir, num_workers=2, cache_dir=cache_dir)
    loader.dataset.load_state_dict(state)
    queue.put((rank, rows_of(loader)))


@pytest.mark.parametrize(("size", "step"), [(2, 0), (2, 4), (4, 4)])
def test_ranks_read_together_what_one_reads(
    shards_dir: Path, expected: list[list[bytes]], tmp_path: Path, size: int, step: int
) -> None:
    """Several processes, also resuming what one process began: each global batch is the same."""
    state = loader_of(shards_dir).dataset.state_dict(step * BATCH_SIZE, from_beginning=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(
            target=read_as_rank, args=(rank, size, port, shards_dir, tmp_path, state, queue)
        )
        for rank in range(size)
    ]
    try:
        for process in ranks:
            process.start()
        by_rank = dict(queue.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join(timeout=60)
    finally:
        remove_blocks_of(tmp_path / "shard_cache")
    parts = zip(*(by_rank[rank] for rank in range(size)), strict=True)
    assert [list(itertools.chain(*of_batch)) for of_batch in parts] == expected[step:]


def test_ranks_must_divide_the_batch(
    shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr("mm1_pipeline.streams.loader.maybe_init_dist", lambda: False)
    with pytest.raises(ValueError, match="found 20, which 3 ranks do not divide"):
        loader_of(shards_dir, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="cache_dir: found None with more than one rank"):
        loader_of(shards_dir)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_lost_on_the_way_stops_the_training(shards_copy: Path, num_workers: int) -> None:
    """Streaming alone ends the epoch early, without an error, or waits for ever."""
    loader = loader_of(shards_copy, num_workers=num_workers)
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        file.unlink()
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"shard|No such file"):
        rows_of(loader)


@pytest.mark.timeout(60)
def test_a_shard_broken_on_the_way_stops_the_training(shards_copy: Path) -> None:
    loader = loader_of(shards_copy)
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    with pytest.raises((RuntimeError, ValueError), match="Checksum failure"):
        rows_of(loader)


def test_an_epoch_that_ends_early_is_an_error(
    shards_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(shards_dir)
    whole = loader.dataset.__iter__

    def short(_: Any) -> Iterable[Any]:
        return (sample for _, sample in zip(range(60), whole(), strict=False))

    monkeypatch.setattr(type(loader.dataset), "__iter__", short)
    with pytest.raises(RuntimeError, match="Found 3 batches, expected 7"):
        rows_of(loader)


def test_a_second_pass_is_refused(shards_dir: Path) -> None:
    loader = loader_of(shards_dir, num_steps=1)
    rows_of(loader)
    with pytest.raises(RuntimeError, match="a training is one epoch of 1 steps"):
        rows_of(loader)


def test_states_of_other_trainings_are_refused(shards_dir: Path) -> None:
    loader = loader_of(shards_dir)
    state = loader.dataset.state_dict(BATCH_SIZE, from_beginning=True)
    other = loader_of(shards_dir, seed=6).dataset
    with pytest.raises(ValueError, match="Found a checkpoint of the mixture"):
        other.load_state_dict(state)
    for wrong in ({"sample_in_epoch": 30}, {"epoch": 1}, {"sample_in_epoch": 160}):
        with pytest.raises(ValueError, match="expected a multiple of 20 up to 140 in epoch 0"):
            loader.dataset.load_state_dict({**state, **wrong})


def test_a_failed_shard_is_free_for_others_to_try(shards_copy: Path) -> None:
    """Else another worker would wait for this one for ever."""
    dataset = loader_of(shards_copy).dataset
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            dataset.prepare_shard(dataset.num_shards - 1, blocking=False)


@pytest.mark.timeout(60)
def test_waiting_for_a_worker_that_fails_ends(shards_copy: Path) -> None:
    """Another worker brings a shard at first, then gives it up."""
    loader = loader_of(shards_copy)
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        file.unlink()
    states, shard = loader.dataset._shard_states, loader.dataset.num_shards - 1
    states[shard] = _ShardState.PREPARING
    other_worker = threading.Timer(0.5, states.__setitem__, (shard, _ShardState.REMOTE))
    other_worker.start()
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"shard|No such file"):
        rows_of(loader)


def test_a_cache_that_is_found_is_not_trusted(
    shards_dir: Path, expected: list[list[bytes]], tmp_path: Path
) -> None:
    """Streaming checks hashes when it fills the cache, not when it reads from it."""
    rows_of(loader_of(shards_dir, cache_dir=tmp_path))
    for file in tmp_path.rglob("*.mds"):
        data = file.read_bytes()
        file.write_bytes(data[:-100] + bytes(100))
    assert rows_of(loader_of(shards_dir, cache_dir=tmp_path)) == expected


def test_leftovers_of_a_killed_run_do_no_harm(
    shards_dir: Path, expected: list[list[bytes]], tmp_path: Path
) -> None:
    """A loader that nobody closed stands for a killed process; others live on."""
    alive = loader_of(shards_dir, cache_dir=tmp_path / "other")
    state = alive.dataset.state_dict(5 * BATCH_SIZE, from_beginning=True)
    alive.dataset.load_state_dict(state)
    killed = loader_of(shards_dir, cache_dir=tmp_path / "same")
    killed.dataset.load_state_dict(state)
    again = loader_of(shards_dir, cache_dir=tmp_path / "same")
    assert rows_of(again) == expected
    assert rows_of(alive) == expected[5:]


def test_a_dead_runs_place_is_not_resumed_from(
    shards_dir: Path, expected: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of shared memory that only holds a place, as a half-cleaned crash leaves it."""
    # Other processes on the machine count from 0 up to the first free number; counted from
    # here, none of them takes or frees a number between the steps of this test.
    first = 1_000 * os.getpid()
    monkeypatch.setattr("streaming.base.shared.prefix._each_prefix_int", lambda: count(first))
    before = loader_of(shards_dir)
    assert before.dataset._shm_prefix_int == first
    state = {**before.dataset.state_dict(60, from_beginning=True), "snapshot": "another"}
    content = json.dumps(state).encode() + b"\0"
    block = SharedMemory(_get_path(first + 1, RESUME), create=True, size=4096)
    block.buf[: len(content)] = content
    try:
        loader = loader_of(shards_dir)
        assert loader.dataset._shm_prefix_int == first + 1, "it does not meet the dead run's place"
        assert rows_of(loader) == expected
    finally:
        block.cleanup()


def test_a_loader_that_is_gone_keeps_nothing_open(shards_dir: Path) -> None:
    """Otherwise a process that builds many loaders runs out of file handles."""

    def use_one() -> None:
        loader = loader_of(shards_dir, num_steps=2)
        loader.dataset.load_state_dict(loader.dataset.state_dict(BATCH_SIZE, True))
        rows_of(loader)

    use_one()
    gc.collect()
    before = num_freed_but_open()
    use_one()
    gc.collect()
    assert num_freed_but_open() == before


def num_freed_but_open() -> int:
    """Blocks of shared memory that have no name any more, but a handle of this process."""
    return sum(name.endswith("(deleted)") for name in open_blocks())


def test_a_loader_opens_only_its_own_shared_memory(shards_dir: Path) -> None:
    """Streaming looks at every dataset of the machine for a free number."""
    other = loader_of(shards_dir, num_steps=2)
    before = open_blocks()
    loader = loader_of(shards_dir, num_steps=2)
    handles = 2 * len(blocks_of(loader.dataset))  # of a block's file, and of its map
    assert len(open_blocks()) - len(before) == handles
    rows_of(other)


def open_blocks() -> list[str]:
    handles = Path("/proc/self/fd").iterdir()
    targets = [os.readlink(handle) for handle in handles if os.path.lexists(handle)]
    return [name for name in targets if name.startswith("/dev/shm/")]


def test_shards_are_not_written_to(shards_dir: Path, tmp_path: Path) -> None:
    """They are an artifact; what is uncompressed goes to the cache."""
    before = sorted(shards_dir.rglob("*"))
    rows_of(loader_of(shards_dir, cache_dir=tmp_path))
    assert sorted(shards_dir.rglob("*")) == before
    assert list((tmp_path / "shard_cache").rglob("*.mds"))


def test_a_temporary_cache_goes_with_its_loader(shards_dir: Path) -> None:
    loader = loader_of(shards_dir, num_steps=1)
    cache = Path(loader.dataset.streams[0].local)
    rows_of(loader)
    assert cache.is_dir()
    del loader
    assert not cache.exists()


@pytest.mark.parametrize("source", ["pages", "books"])
def test_held_out_sequences_come_once_in_order(shards_dir: Path, source: str) -> None:
    loader = build_validation_loader(shards_dir, source, 4, stream_id=2)
    batches = list(loader)
    stored = [
        sample["input_ids"].astype(np.int64).tobytes()
        for sample in read_sequences(shards_dir / source / "validation")
    ]
    assert [row for rows in rows_of(batches) for row in rows] == stored
    assert len(batches) == len(loader) == -(-len(stored) // 4)
    assert {int(id_) for batch in batches for id_ in batch["stream_ids"]} == {2}


def test_an_unknown_source_is_named(shards_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"no source 'page' .* books, few_pairs, pages, pairs"):
        build_validation_loader(shards_dir, "page", 4)
