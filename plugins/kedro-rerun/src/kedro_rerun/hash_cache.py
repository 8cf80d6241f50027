"""Content hashes of files, remembered by size, times and inode.

A hash is trusted only when the file was last changed well before it was hashed: within one tick
of the file system's clock a second write would leave no trace in the times. Source: Git's racy
entries, which it compares with the time of its index.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from kedro_rerun.files import (
    CONTENT_HASH,
    hash_file,
    read_json,
    seal,
    unseal,
    write_cache,
)

_TICK_NS = 50_000_000
"""Longer than the clock tick of common local file systems (10 ms)."""
_COARSE_TICK_NS = 2_100_000_000
"""Longer than that of file systems with whole seconds, or every second one (FAT)."""
_SECOND_NS = 1_000_000_000
_FORMAT = 2


class HashCache:
    """Hashes files, and reads unchanged ones only once.

    Args:
        path: where the hashes are kept between processes; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: dict[str, list[Any]] = {}
        self._changed = False
        self._lag: int | None = None
        stored = unseal(read_json(path)) if path is not None else None
        if stored is not None and stored.get("format") == _FORMAT:
            self._entries = stored["entries"]

    def hash(self, path: Path, algorithm: str = CONTENT_HASH) -> str:
        """The hash of a file's content.

        Args:
            path: a local file; its size, times and inode tell whether it is known.
            algorithm: as `files.hash_file`.

        Returns:
            The digest in hexadecimal.
        """
        key = self._key(path, algorithm)
        found = signature(path)
        entry = self._entries.get(key)
        if entry is not None and entry[:4] == found and _is_settled(found, entry[4]):
            return entry[5]
        started = time.time_ns() - self._clock_lag()
        value = hash_file(path, algorithm)
        if signature(path) == found:
            self._store(key, found, started, value)
        return value

    def seed(self, path: Path, value: str, algorithm: str = CONTENT_HASH) -> None:
        """Remembers a hash that was computed elsewhere from the file's present content."""
        self._store(
            self._key(path, algorithm), signature(path), time.time_ns() - self._clock_lag(), value
        )

    def is_settled(self, found: list[int], now: int) -> bool:
        """Whether a file was last written to so long ago that a write from now on will show.

        Args:
            found: its signature.
            now: this machine's time, in nanoseconds.
        """
        return _is_settled(found, now - self._clock_lag())

    def save(self) -> None:
        """Writes the hashes of files that still exist, when there are new ones."""
        if self._path is None or not self._changed:
            return
        entries = {
            key: entry for key, entry in self._entries.items() if os.path.exists(_file_of(key))
        }
        write_cache(self._path, json.dumps(seal({"format": _FORMAT, "entries": entries})))
        self._changed = False

    def _store(self, key: str, found: list[int], hashed_at: int, value: str) -> None:
        self._entries[key] = [*found, hashed_at, value]
        self._changed = True

    def _clock_lag(self) -> int:
        """Nanoseconds by which a file written now is older than this machine's time.

        Servers of files have clocks of their own. One that is late dates a second edit so that it
        looks long past, which is why Git compares with the time of its index on the same disk.
        """
        if self._lag is None:
            self._lag = 0
            if self._path is not None:
                probe = self._path.with_name(f".clock.{os.getpid()}.tmp")
                with contextlib.suppress(OSError):  # A root that is read-only, or not there yet.
                    probe.touch()
                    self._lag = max(0, time.time_ns() - os.stat(probe).st_ctime_ns)
                    probe.unlink()
        return self._lag

    @staticmethod
    def _key(path: Path, algorithm: str) -> str:
        name = os.path.abspath(path)
        return name if algorithm == CONTENT_HASH else f"{name}\0{algorithm}"


def signature(path: Path) -> list[int]:
    """Size, times and inode of a file: another one, and it was written to."""
    stat = os.stat(path)
    # The change time reveals an edit whose author restored the modification time.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _is_settled(found: list[int], hashed_at: int) -> bool:
    # Nobody sets a change time by hand, so one without fractions comes from a coarse clock.
    is_coarse = found[2] % _SECOND_NS == 0
    tick = _COARSE_TICK_NS if is_coarse else _TICK_NS
    return hashed_at - max(found[1], found[2]) > tick


def _file_of(key: str) -> str:
    return key.partition("\0")[0]
