"""Processes of a grid's runs, and the share of the machine that each gets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAST_LINES = 25
_SECONDS_TO_END = 20


class RunFailedError(RuntimeError):
    """A run ended with an error."""


class Processes:
    """Processes that are running; all end when the block is left by an error.

    A process that outlives a killed grid goes on with its run. It holds the lock of its data
    root, so the next grid waits for it and finds the run finished.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.end()

    def run(
        self, command: Sequence[str], folder: Path, log: Path, share: Mapping[str, str]
    ) -> None:
        """Runs a command to its end.

        Args:
            command: Without a shell.
            folder: Working directory of the command.
            log: Gets what it says.
            share: Environment variables beside this process's.

        Raises:
            RunFailedError: It ended with an error; its last lines are in the message.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command, without a shell
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_WAIT_POLICY": "passive", **share},
                start_new_session=True,
            )
            with self._lock:
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            raise RunFailedError(
                f"ended with {code}. The whole log: {log}. Its last lines:\n" + "\n".join(lines)
            )

    def end(self) -> None:
        """Ends all that run, with their groups."""
        with self._lock:
            running = list(self._running)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def machine_shares(
    num_workers: int, *, num_cores: int, gpus: Sequence[str]
) -> list[dict[str, str]]:
    """Environment variables that divide a machine among workers.

    Args:
        num_workers: One alone gets everything.
        num_cores: Cores of the machine; each worker gets an equal share, 1 at least.
        gpus: Names of the GPUs that may be used. With fewer than workers, workers share them.

    Returns:
        Variables of each worker.
    """
    if num_workers == 1:
        return [{}]
    shares = []
    for worker in range(num_workers):
        share = {"OMP_NUM_THREADS": str(max(1, num_cores // num_workers))}
        if gpus:
            own = gpus[worker::num_workers] or [gpus[worker % len(gpus)]]
            share["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        shares.append(share)
    return shares


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(index) for index in range(count)]


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
