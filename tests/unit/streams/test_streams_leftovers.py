"""What killed runs leave is removed; what others use is not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from streaming.base import constant
from streaming.base.shared.prefix import _get_path, _pack_locals

from mm1_pipeline.streams import leftovers
from mm1_pipeline.streams.leftovers import (
    SHARD_CACHE,
    TemporaryFolder,
    hold,
    lock_of,
    remove_leftovers,
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Shared memory and temporary folders of a machine of our own."""
    for name in ("shm", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(leftovers, "_SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def dataset(machine: Path, number: int, cache: Path) -> list[Path]:
    """Blocks and lock files as Streaming makes them, and uncompressed shards."""
    for source in ("pairs", "books"):
        (cache / source / "train").mkdir(parents=True, exist_ok=True)
    made = []
    for name in constant.SHM_TO_CLEAN[:6]:
        made.append(machine / "shm" / _get_path(number, name))
        made[-1].write_bytes(b"x" * 100)
    directories = [str(cache / source / "train") for source in ("pairs", "books")]
    made[0].write_bytes(_pack_locals(directories, number))
    for name in (constant.BARRIER_FILELOCK, constant.CACHE_FILELOCK):
        made.append(machine / "tmp" / _get_path(number, name))
        made[-1].touch()
    return made


def in_killed_process(function) -> None:
    """Runs a function in a process that is then killed, as no `finally` sees it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        kept = function()
        os.write(writing, b"r")
        time.sleep(60)
        del kept
        os._exit(0)
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def age(path: Path) -> None:
    old = time.time() - 3600
    os.utime(path, (old, old))


def test_names_are_streamings():
    assert list(leftovers._BLOCKS) == constant.SHM_TO_CLEAN
    assert list(leftovers._LOCK_FILES) == [constant.BARRIER_FILELOCK, constant.CACHE_FILELOCK]


def test_a_killed_runs_blocks_locks_and_shards_go(machine):
    cache = machine / "work" / "cache" / "node-0" / SHARD_CACHE
    made = dataset(machine, 3, cache)
    in_killed_process(lambda: hold(lock_of(cache)))
    assert remove_leftovers() == [], "a lock that young may not have been taken yet"
    age(lock_of(cache))
    told = remove_leftovers(dry_run=True)
    assert {path for path, _ in told} == {*made, cache, lock_of(cache)}
    assert all(path.exists() for path in made)
    assert remove_leftovers() == told
    assert not any(path.exists() for path in [*made, cache, lock_of(cache)])
    assert remove_leftovers() == []


def test_what_others_use_stays(machine):
    """Alive, without a lock (an earlier version's), of another program, and no dataset at all."""
    alive, unlocked, foreign = (machine / name / SHARD_CACHE for name in ("a", "b", "c"))
    made = dataset(machine, 0, alive) + dataset(machine, 1, unlocked)
    made += dataset(machine, 2, foreign.with_name("cache"))
    (machine / "shm" / "000009_locals").write_bytes(b"\xff\xff\xff\x7f\xff")
    (machine / "shm" / "psm_1234").touch()
    held = hold(lock_of(alive))
    age(lock_of(alive))
    assert remove_leftovers() == []
    assert all(path.exists() for path in made)
    held.close()
    age(lock_of(alive))
    assert {path for path, _ in remove_leftovers()} == {*made[:8], alive, lock_of(alive)}


def test_blocks_whose_run_was_deleted_by_hand_go(machine):
    made = dataset(machine, 0, machine / "gone" / SHARD_CACHE)
    for folder in sorted((machine / "gone").rglob("*"), reverse=True):
        folder.rmdir()
    (machine / "gone").rmdir()
    assert {path for path, _ in remove_leftovers()} == set(made)


def test_temporary_folders_go_with_their_run_and_after_it_was_killed(machine):
    with TemporaryFolder("meeting") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "ranks").touch()
        age(folder / ".alive")
        assert remove_leftovers() == []
    assert not folder.exists()
    in_killed_process(lambda: TemporaryFolder("join"))
    (left,) = (machine / "tmp").iterdir()
    age(left / ".alive")
    (machine / "tmp" / "mm1-of-somebody-else").mkdir()
    (machine / "tmp" / "mm1-link").symlink_to(machine)
    assert [path for path, _ in remove_leftovers()] == [left]
    assert not left.exists()
    assert sorted(path.name for path in (machine / "tmp").iterdir()) == [
        "mm1-link",
        "mm1-of-somebody-else",
    ]
