"""What runs leave when they are killed, told from what runs that are alive use.

A run that is killed cannot clear its shared memory, its uncompressed shards and its temporary
folders. Each of them has a file beside it that its run keeps locked; the kernel drops the lock with
the run, however it ends. What nobody holds is removed when another run starts, and by
`kedro mm1 gc`.

This imports neither torch nor Streaming; the names of Streaming's blocks are tested against it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SHARD_CACHE = "shard_cache"
"""Folder of a run's uncompressed shards, by which its datasets are known."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Linux shows it
_BLOCK = re.compile(r"(\d{6,})_locals")
_BLOCKS = (
    "locals", "barrier", "next_epoch", "cache_usage", "shard_states", "shard_access_times",
    "resume", "epoch_shape", "epoch_data",
)  # fmt: skip
_LOCK_FILES = ("barrier_filelock", "cache_filelock")
_ALIVE = ".alive"
_FOLDER_PREFIX = "mm1-"
_YOUNG_SECONDS = 60.0
"""Age under which a lock may not have been taken yet."""

_LOCK_SECONDS = 300.0
_LOCK_TICK_SECONDS = 0.02
_HOLD_TRIES = 10


@contextlib.contextmanager
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
    lock = Path(tempfile.gettempdir()) / f"mm1-pipeline-streaming-{os.getuid()}.lock"
    with lock.open("a") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"Found {lock} held by another process for {_LOCK_SECONDS:.0f} s, expected "
                        "it for seconds only. Two nodes of one training need /tmp and /dev/shm of "
                        "their own; otherwise end the process that holds it."
                    ) from None
                time.sleep(_LOCK_TICK_SECONDS)
        yield


def hold(lock: Path) -> IO[bytes]:
    """Marks what lies beside a file as in use, until the result is closed or its process ends.

    Args:
        lock: made if missing.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("ab")
    os.utime(file.fileno())
    for _ in range(_HOLD_TRIES):  # somebody may be looking whether it is held
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(_LOCK_TICK_SECONDS)
    return file  # else it is held by this very run, for an earlier dataset


def lock_of(cache_dir: Path) -> Path:
    """The file that says whether a folder of uncompressed shards is in use."""
    return cache_dir.with_suffix(_ALIVE)


class TemporaryFolder:
    """A folder for this user alone that is removed with its run, or after it was killed.

    Args:
        purpose: part of its name.
    """

    def __init__(self, purpose: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{purpose}-"))
        self._lock = hold(self.path / _ALIVE)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes it; may be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_leftovers(*, dry_run: bool = False) -> list[tuple[Path, int]]:
    """Removes what killed runs of this user left.

    Args:
        dry_run: only tells what would go.

    Returns:
        What was removed, and its bytes.
    """
    found = [path for path in _leftovers() if path.exists()]
    sized = [(path, _size(path)) for path in found]
    for path in [] if dry_run else found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return sized


def _leftovers() -> Iterator[Path]:
    temporary = Path(tempfile.gettempdir())
    for folder in sorted(temporary.glob(f"{_FOLDER_PREFIX}*")):
        if _is_ours(folder) and folder.is_dir() and _is_abandoned(folder / _ALIVE):
            yield folder
    for block in sorted(_SHARED_MEMORY.glob("*_locals")):
        number = _BLOCK.fullmatch(block.name)
        cache = _cache_of(block) if number and _is_ours(block) else None
        if number is None or cache is None:
            continue
        lock = lock_of(cache)
        if _is_abandoned(lock) or (not cache.parent.exists() and not _is_mapped(block)):
            yield from (_SHARED_MEMORY / f"{number[1]}_{name}" for name in _BLOCKS)
            yield from (temporary / f"{number[1]}_{name}" for name in _LOCK_FILES)
            yield from (cache, lock)


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid() and not path.is_symlink()
    except OSError:
        return False


def _is_abandoned(lock: Path) -> bool:
    """Whether a lock is there that nobody holds."""
    try:
        with lock.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _YOUNG_SECONDS:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # there is none, or it is held
        return False


def _cache_of(block: Path) -> Path | None:
    """The folder of uncompressed shards that a dataset's block names; None if it is not ours."""
    try:
        data = block.read_bytes()
        text = data[4 : int.from_bytes(data[:4], "little")].decode()
    except (OSError, UnicodeDecodeError):
        return None
    directory = Path(text.split("\0")[0])
    parts = [directory, *directory.parents]
    return next((part for part in parts if part.name == SHARD_CACHE), None)


def _is_mapped(block: Path) -> bool:
    """Whether a process uses a block of shared memory, as far as this one can see."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f" {block}\n" in maps.read_text(errors="replace"):
                return True
    return False


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
