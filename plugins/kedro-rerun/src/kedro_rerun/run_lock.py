"""One run at a time on one data root.

The lock is an `flock`, which the kernel drops with the process that holds it, so there is no
stale lock to clean up after a kill.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from kedro_rerun.errors import StalenessError, without_secrets
from kedro_rerun.files import read_json

STATE_FOLDER = ".staleness"
_LOCK = "run.lock"


class WhenBusy(StrEnum):
    """What a second run on a data root does."""

    WAIT = "wait"
    """Waits until the first is done."""
    REFUSE = "refuse"
    """Stops with an error that names the first."""


@contextlib.contextmanager
def hold_run_lock(
    data_root: Path,
    when_busy: WhenBusy = WhenBusy.WAIT,
    tell: Callable[[str], None] | None = None,
    *,
    only_looks: bool = False,
) -> Iterator[None]:
    """Holds the data root for the block.

    Args:
        data_root: the folder that holds all artifacts of an environment.
        when_busy: waits for another holder, or refuses.
        tell: gets one sentence before a wait.
        only_looks: the block changes nothing, so it goes without a lock where none can be had.

    Yields:
        Nothing.

    Raises:
        StalenessError: when another process holds the lock and `when_busy` is refuse, or the
            data root cannot be written to.
    """
    path = data_root / STATE_FOLDER / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if not only_looks:
            raise StalenessError(
                f"{data_root}: found a folder that cannot be written to ({error.strerror}). Make "
                "it writable, or give `data_root` of globals.yml another place; status, explain, "
                "verify and gc --dry-run work without."
            ) from error
        yield
        return
    held = _Held(descriptor)
    try:
        _acquire(descriptor, path, when_busy, tell)
        _describe_holder(descriptor)
        yield
    finally:
        held.close()


class _Held:
    """A descriptor that forked children give up: a surviving child must not keep the lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _acquire(
    descriptor: int, path: Path, when_busy: WhenBusy, tell: Callable[[str], None] | None
) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(path)
        if when_busy is WhenBusy.REFUSE:
            raise StalenessError(
                f"{path.parent.parent}: found another run in progress ({holder}). "
                "Wait for it, stop it, or give this run another data root."
            ) from None
        if tell is not None:
            tell(f"Waiting for another run on {path.parent.parent} to end ({holder}).")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _describe_holder(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": without_secrets(shlex.join(sys.argv)),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(path: Path) -> str:
    # Text for a person only: the lock itself is the flock, not this content.
    holder = read_json(path)
    if not isinstance(holder, dict):
        return "which has just started"
    return (
        f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}: "
        f"{holder.get('command')}"
    )
