"""Folders that go with their run, and what is left of them when a run is killed.

A run that is killed cannot clear its uncompressed shards and its other temporary folders. In each
of them lies a file that its run keeps locked; the kernel drops the lock with the run, however it
ends. What nobody holds is removed when a training starts, and by `kedro mm1 gc`.

This imports no torch.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_ALIVE = ".alive"
_FOLDER_PREFIX = "mm1-"

_HELD: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()
"""Locks of this process."""


def _let_go() -> None:
    """A forked process closes its parent's locks, or they would outlive the parent with it."""
    for lock in list(_HELD):
        lock.close()


os.register_at_fork(after_in_child=_let_go)


class TemporaryFolder:
    """A folder for this user alone that is removed with its run, or after it was killed.

    Args:
        purpose: Part of its name.
        parent: Where it is made, if it may get large; a link beside other temporary folders
            lets others find it. None is the folder for temporary files.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{purpose}-", dir=parent))
        self._owner = os.getpid()
        self._link = None if parent is None else Path(tempfile.gettempdir()) / self.path.name
        # It gets its name with the lock on it, so that it is never found without.
        unnamed = self.path / f"{_ALIVE}.new"
        self._lock = unnamed.open("ab")
        _HELD.add(self._lock)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _ALIVE)
        if self._link is not None:
            self._link.symlink_to(self.path.absolute())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes it; may be called twice. A forked process leaves it to its parent."""
        if os.getpid() != self._owner:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        self._lock.close()


def remove_leftovers(
    parent: Path | None = None, *, dry_run: bool = False
) -> list[tuple[Path, int]]:
    """Removes what killed runs of this user left.

    Args:
        parent: Also looked through, as links to it may have gone with a restart.
        dry_run: Only tells what would go.

    Returns:
        What was removed, and its bytes.
    """
    found = list(dict.fromkeys(_leftovers(parent)))
    sized = [
        (path, sum(file.lstat().st_size for file in path.rglob("*") if file.is_file()))
        for path in found
    ]
    for path in [] if dry_run else found:
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        link = Path(tempfile.gettempdir()) / path.name
        if link.is_symlink() and _is_ours(link):
            link.unlink(missing_ok=True)
    return sized


def _leftovers(parent: Path | None) -> Iterator[Path]:
    for place in [Path(tempfile.gettempdir()), *([parent] if parent else [])]:
        for folder in sorted(place.glob(f"{_FOLDER_PREFIX}*")):
            if not _is_ours(folder):  # who follows another user's link removes what that one says
                continue
            target = folder.readlink() if folder.is_symlink() else folder
            if target.name != folder.name:  # no link of ours
                continue
            if folder.is_symlink() and not target.exists():
                yield folder  # what it names was removed by hand
            elif _is_ours(target) and target.is_dir() and _is_abandoned(target / _ALIVE):
                yield target


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _is_abandoned(lock: Path) -> bool:
    """Whether a lock is there that nobody holds."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # there is none, or it is held
        return False
