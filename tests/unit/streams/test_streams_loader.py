"""The loader delivers the snapshot: whole, in order, resumed, on any number of ranks."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm1_pipeline.config.training import MixtureConfig, StreamMixture
from mm1_pipeline.streams.leftovers import remove_leftovers
from mm1_pipeline.streams.loader import MixtureLoader, build_loader, build_validation_loader
from mm1_pipeline.streams.mds import ShardFile, read_sequences
from mm1_pipeline.streams.mixture import MixtureSnapshot

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
    """The uncompressed shards of a real one, at once; not those of another, nor shared memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive = loader_of(shards_dir)
    before = set(Path("/dev/shm").glob("*_locals"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        batches = iter(loader_of(shards_dir, num_workers=2))
        next(batches)
        os.write(writing, b"r")
        time.sleep(60)
        os._exit(1)
    os.read(reading, 1)
    assert len(list(tmp_path.glob("mm1-cache-*"))) == 2
    assert remove_leftovers() == []
    os.kill(child, signal.SIGKILL)  # alone: the processes that read for it live on for a while
    os.waitpid(child, 0)
    ((removed, size),) = remove_leftovers()
    assert removed.parent == tmp_path
    assert size > 10_000
    assert len(list(tmp_path.glob("mm1-cache-*"))) == 1
    assert set(Path("/dev/shm").glob("*_locals")) <= before
    assert len(rows_of(alive)) == NUM_STEPS


def read_as_rank(
    rank: int, size: int, shards_dir: Path, cache_dir: Path, state: dict, queue: Any
) -> None:
    loader = loader_of(shards_dir, num_workers=2, cache_dir=cache_dir, rank=rank, num_ranks=size)
    loader.dataset.load_state_dict(state)
    queue.put((rank, rows_of(loader)))


@pytest.mark.parametrize(("size", "step"), [(2, 0), (2, 4), (4, 4)])
def test_ranks_read_together_what_one_reads(
    shards_dir: Path, expected: list[list[bytes]], tmp_path: Path, size: int, step: int
) -> None:
    """Several processes, also resuming what one process began: each global batch is the same."""
    state = loader_of(shards_dir).dataset.state_dict(step * BATCH_SIZE, from_beginning=True)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=read_as_rank, args=(rank, size, shards_dir, tmp_path, state, queue))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    by_rank = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    parts = zip(*(by_rank[rank] for rank in range(size)), strict=True)
    assert [list(itertools.chain(*of_batch)) for of_batch in parts] == expected[step:]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_state_that_streaming_wrote_is_resumed_from(
    shards_dir: Path, expected: list[list[bytes]]
) -> None:
    """Checkpoints of versions whose dataset was Streaming's hold its fields as well."""
    loader = loader_of(shards_dir)
    snapshot = loader.dataset.snapshot.describe()["sha256"]
    of_streaming = {"num_canonical_nodes": 1, "shuffle_seed": 9176, "initial_physical_nodes": 1}
    place = {"epoch": 0, "sample_in_epoch": 4 * BATCH_SIZE, "snapshot": snapshot}
    loader.dataset.load_state_dict({**of_streaming, **place})
    assert loader.dataset.state_dict(4 * BATCH_SIZE, from_beginning=True) == place
    assert loader.dataset.state_dict(0, from_beginning=False) == place
    assert rows_of(loader) == expected[4:]


def test_ranks_must_divide_the_batch(shards_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 20, which 3 ranks do not divide"):
        loader_of(shards_dir, cache_dir=tmp_path, num_ranks=3)
    with pytest.raises(ValueError, match="cache_dir: found None with more than one rank"):
        loader_of(shards_dir, num_ranks=3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_lost_on_the_way_stops_the_training(shards_copy: Path, num_workers: int) -> None:
    loader = loader_of(shards_copy, num_workers=num_workers)
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        file.unlink()
    with pytest.raises(RuntimeError, match=r"(?s)A shard .* No such file .*/books/train/shard"):
        rows_of(loader)
    assert loader.delivered_steps < NUM_STEPS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_broken_on_the_way_stops_the_training(shards_copy: Path, num_workers: int) -> None:
    loader = loader_of(shards_copy, num_workers=num_workers)
    for file in (shards_copy / "books/train").glob("*.mds.zstd"):
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"(?s)/books/train/shard.* \(xxh64 differs\).* verify"):
        rows_of(loader)


def test_an_epoch_that_ends_early_is_an_error(
    shards_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(shards_dir)
    whole = loader.sampler.__iter__
    monkeypatch.setattr(type(loader.sampler), "__iter__", lambda _: itertools.islice(whole(), 60))
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
    outside = ({"sample_in_epoch": 160}, {"sample_in_epoch": -20})
    for wrong in ({"sample_in_epoch": 30}, {"epoch": 1}, *outside):
        with pytest.raises(ValueError, match="expected a multiple of 20 up to 140 in epoch 0"):
            loader.dataset.load_state_dict({**state, **wrong})


def test_a_shard_is_unpacked_once_by_processes_that_need_it_together(
    shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "unpacked"
    whole = ShardFile.unpack

    def slowly(shard: ShardFile) -> bytes:
        with unpacked.open("a") as log:
            log.write(f"{shard.stored}\n")
        time.sleep(0.05)
        return whole(shard)

    monkeypatch.setattr(ShardFile, "unpack", slowly)
    rows_of(loader_of(shards_dir, num_workers=2, cache_dir=tmp_path / "cache"))
    names = unpacked.read_text().splitlines()
    assert len(names) == len(set(names)) > 3
    assert len(list(tmp_path.rglob("*.mds"))) == len(names)


@pytest.mark.timeout(60)
def test_a_shard_that_a_killed_process_was_unpacking_is_unpacked_by_another(
    shards_dir: Path, expected: list[list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(shards_dir, cache_dir=tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        write = Path.write_bytes

        def half(file: Path, data: bytes) -> None:
            write(file, data[: len(data) // 2])
            os.write(writing, b"r")
            time.sleep(60)

        monkeypatch.setattr(Path, "write_bytes", half)
        rows_of(loader)
        os._exit(1)
    os.read(reading, 1)
    threading.Timer(0.2, os.kill, (child, signal.SIGKILL)).start()
    assert rows_of(loader) == expected, "it waits for the other, then does its work"
    os.waitpid(child, 0)


def test_a_cache_that_is_found_is_not_trusted(shards_dir: Path, tmp_path: Path) -> None:
    rows_of(loader_of(shards_dir, cache_dir=tmp_path))
    with pytest.raises(ValueError, match=r"cache_dir: found shards in .*, expected an empty"):
        loader_of(shards_dir, cache_dir=tmp_path)


def test_an_unpacked_file_that_is_cut_is_named(shards_dir: Path, tmp_path: Path) -> None:
    loader = loader_of(shards_dir, cache_dir=tmp_path)
    batches = iter(loader)
    next(batches)
    for file in tmp_path.rglob("*.mds"):
        os.truncate(file, 1_000)
    with pytest.raises(
        RuntimeError, match=r"could not be read: .*\.mds \(unpacked from .*\.zstd\)"
    ):
        list(batches)


def test_a_cache_that_is_gone_is_not_made_again(shards_dir: Path, tmp_path: Path) -> None:
    """Its run has ended: a process that reads on would leave shards that nobody removes."""
    loader = loader_of(shards_dir, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RuntimeError, match="A shard could not be read"):
        rows_of(loader)
    assert not list(tmp_path.iterdir())


def test_a_loader_keeps_no_file_open(shards_dir: Path) -> None:
    """A training has more shards than a process may have files open."""

    def open_files() -> list[str]:
        handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
        return sorted(os.readlink(handle) for handle in handles if os.path.lexists(handle))

    before = open_files()
    loader = loader_of(shards_dir)
    rows_of(loader)
    new = [name for name in open_files() if name not in before]
    assert [Path(name).name for name in new] == [".alive"]
    del loader
    assert not [name for name in open_files() if name not in before]


def test_shards_are_not_written_to(shards_dir: Path, tmp_path: Path) -> None:
    """They are an artifact; what is uncompressed goes to the cache."""
    before = sorted(shards_dir.rglob("*"))
    rows_of(loader_of(shards_dir, cache_dir=tmp_path))
    assert sorted(shards_dir.rglob("*")) == before
    assert list(tmp_path.rglob("*.mds"))


def test_a_temporary_cache_goes_with_its_loader(
    shards_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loader = loader_of(shards_dir, num_steps=1, num_workers=2)
    rows_of(loader)
    assert list(tmp_path.glob("mm1-cache-*/books/train/*.mds"))
    del loader
    assert not list(tmp_path.iterdir())


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
