"""Keeps Streaming's shared memory and lock files from piling up.

Streaming gives every dataset a number, the first for which neither blocks of shared memory
(`000007_locals`) nor lock files are found, and frees blocks when the process ends, lock files
never. To find the number it opens what others have, and keeps that open. So a process that
builds many loaders runs out of file handles, numbers grow with every run on a machine, and a
killed run stands in its own way. Its remedy (`clean_stale_shared_memory`) also takes the blocks
of other runs that are alive.
"""

from __future__ import annotations

import atexit
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing.shared_memory import SharedMemory as PlainSharedMemory
from pathlib import Path
from tempfile import gettempdir
from time import monotonic, sleep
from typing import Any

from streaming.base.constant import (
    BARRIER_FILELOCK,
    CACHE_FILELOCK,
    LOCALS,
    SHM_TO_CLEAN,
)
from streaming.base.dataset import StreamingDataset
from streaming.base.shared import SharedMemory, _get_path
from streaming.base.shared import prefix as streaming_prefix
from streaming.base.shared.prefix import _unpack_locals

_LOCK_SECONDS = 300.0
_LOCK_TICK_SECONDS = 0.02


@contextmanager
def one_run_at_a_time(is_local_leader: bool) -> Iterator[None]:
    """Lets one run of this user choose its dataset's number at a time.

    Streaming looks for a free number first and takes it later, so runs that start together
    could choose the same. A run's local leader speaks for it; the kernel drops the lock with
    the process, so a killed run blocks nobody.

    Raises:
        RuntimeError: somebody else does not stop choosing.
    """
    if not is_local_leader:
        yield
        return
    lock = Path(gettempdir()) / f"mm1-pipeline-streaming-{os.getuid()}.lock"
    with lock.open("a") as file:
        deadline = monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() > deadline:
                    raise RuntimeError(
                        f"Found {lock} held by another process for {_LOCK_SECONDS:.0f} s, expected "
                        "it for seconds only. Two nodes of one training need /tmp and /dev/shm of "
                        "their own; otherwise end the process that holds it."
                    ) from None
                sleep(_LOCK_TICK_SECONDS)
        yield


def remove_leftovers(cache_dir: Path) -> None:
    """Frees what a killed run with this cache left; other runs keep theirs.

    Args:
        cache_dir: Folder that only this run uses.
    """
    for prefix, directories in _datasets_alive_or_dead():
        if any(Path(directory).is_relative_to(cache_dir) for directory in directories):
            for name in SHM_TO_CLEAN:
                _unlink(_get_path(prefix, name))
            _remove_locks(prefix)


@contextmanager
def others_closed() -> Iterator[None]:
    """Closes what Streaming opens of other datasets to find a free number.

    For use around the building of one dataset. Each block is read before the next is opened, and
    the last is the dataset's own.
    """
    opened: list[SharedMemory] = []

    class OneAtATime(SharedMemory):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            _close(opened)
            opened.clear()
            super().__init__(*arguments, **options)
            opened.append(self)

    streaming_prefix.SharedMemory = OneAtATime  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        streaming_prefix.SharedMemory = SharedMemory  # pyright: ignore[reportPrivateImportUsage]


def blocks_of(dataset: StreamingDataset) -> list[SharedMemory]:
    """The blocks of shared memory that a dataset has open."""
    scalars = (dataset._next_epoch, dataset._cache_usage)
    arrays = (dataset._shared_barrier._arr, dataset._shard_states, dataset._shard_access_times)
    return [
        dataset._locals_shm,
        *(scalar.arr.shm for scalar in scalars),
        *(array.shm for array in arrays),
    ]


def release(blocks: Sequence[SharedMemory], prefix: int, owner: int) -> None:
    """Closes a dataset's blocks, and frees those that this process made.

    Args:
        blocks: What `blocks_of` gave.
        prefix: The dataset's number.
        owner: The process that built the dataset; in others, its workers, nothing happens.
    """
    if os.getpid() != owner:
        return
    _close(blocks)
    if any(block.created_shms for block in blocks):
        _remove_locks(prefix)


def _close(blocks: Sequence[SharedMemory]) -> None:
    for block in blocks:
        atexit.unregister(block.cleanup)
        block.cleanup()


def _datasets_alive_or_dead() -> Iterator[tuple[int, list[str]]]:
    """Number and folders of every dataset, up to the first number that is free."""
    for prefix in count():
        try:
            block = SharedMemory(_get_path(prefix, LOCALS), create=False, auto_cleanup=False)
        except FileNotFoundError:
            if any(lock.exists() for lock in _locks(prefix)):
                continue
            return
        except PermissionError:  # another user's
            continue
        directories, _ = _unpack_locals(bytes(block.buf))
        block.cleanup()
        yield prefix, directories


def _locks(prefix: int) -> list[Path]:
    names = (BARRIER_FILELOCK, CACHE_FILELOCK)
    return [Path(gettempdir()) / _get_path(prefix, name) for name in names]


def _remove_locks(prefix: int) -> None:
    for lock in _locks(prefix):
        lock.unlink(missing_ok=True)


def _unlink(name: str) -> None:
    """Removes a block of shared memory, if it is there."""
    try:
        block = PlainSharedMemory(name, create=False)
    except (FileNotFoundError, PermissionError):
        return
    block.close()
    block.unlink()
