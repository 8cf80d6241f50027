"""What a stranger can see of a training's ports, and what one does to them."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


class Hostile:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from tree(int(child))


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports at which a process or a descendant listens."""
    inodes, found = set(), set()
    for process in tree(pid):
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor))
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                words = [address[at : at + 8] for at in range(0, len(address), 8)]
                raw = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.add((socket.inet_ntop(family, raw), int(port, 16)))
    return found


def harass(address: str, port: int, marker: Path) -> None:
    """Sets the keys by which jobs once came, and talks rubbish."""
    payload = pickle.dumps(Hostile(marker))
    with contextlib.suppress(Exception):  # no store, or one that hangs up
        second = datetime.timedelta(seconds=1)
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=second)
        for key in ("job", "training/job"):
            store.set(key, payload)  # pyright: ignore[reportArgumentType]
    for words in (payload, bytes(64), b"GET / HTTP/1.1\r\n\r\n"):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, port), timeout=1) as connection,
        ):
            connection.sendall(words)


class Stranger:
    """Watches, in a thread, where processes listen, and harasses each port once.

    Args:
        pid: of the first process.
        marker: what a payload makes if it is run.
    """

    def __init__(self, pid: int, marker: Path) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._pid, self._marker = pid, marker
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stranger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for place in listening(self._pid) - self.seen:
                self.seen.add(place)
                harass(*place, self._marker)
