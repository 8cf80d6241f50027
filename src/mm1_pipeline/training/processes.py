"""The processes of a training on this machine: started, watched, and ended whatever happens.

This imports neither torch nor Composer, and knows nothing of training.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mm1_pipeline.training.authenticated import without_secret
from mm1_pipeline.training.errors import TrainingStoppedError, TrainingTerminatedError
from mm1_pipeline.training.nodes import ALONE, Node, loopback_interface
from mm1_pipeline.training.termination import Termination

_POLL_SECONDS = 0.1
_LAST_LINES = 15
_TAIL_BYTES = 16_384
_CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables by which Gloo and NCCL are told where to listen."""

_COMMAND = [sys.executable, "-m", "mm1_pipeline.training.worker"]

_ERRORS: dict[str, Callable[[str], BaseException]] = {
    "ValueError": ValueError,
    "TrainingStoppedError": TrainingStoppedError,
    "TrainingTerminatedError": TrainingTerminatedError,
}
"""Errors of a worker that are raised here as they are: their messages are for users."""


class WorkerProcesses:
    """The ranks of this node; leaving the context ends every process that is left.

    Each has a process group of its own, which holds its data workers too, and ends itself when
    this process is gone (see `worker`).

    Args:
        num_processes: on this node.
        device: of every process.
        logs_dir: gets what each rank writes.
        node: this machine.
        interface: network interface through which ranks reach each other, if several machines
            train together and it is known; on one machine it is the loopback.
        store_listener: descriptor of a socket that rank 0 takes over.
    """

    def __init__(
        self,
        num_processes: int,
        device: str,
        logs_dir: Path,
        *,
        node: Node = ALONE,
        interface: str | None = None,
        store_listener: int | None = None,
    ) -> None:
        shutil.rmtree(logs_dir, ignore_errors=True)
        logs_dir.mkdir(parents=True)
        self._logs_dir = logs_dir
        self._first_rank = node.rank * num_processes
        self._store_listener = store_listener
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log_files: list[IO[bytes]] = []
        self._relay: threading.Thread | None = None
        self._writers: list[threading.Thread] = []
        environment = _environment(num_processes, device, node, interface)
        try:
            for local_rank in range(num_processes):
                self._start(local_rank, environment)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def hand_over(self, order: bytes) -> None:
        """Gives every rank its order, over its own pipe."""

        def write(pipe: IO[bytes]) -> None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already: `wait` says why
                pipe.write(len(order).to_bytes(8, "big") + order)
                pipe.flush()

        for process in self._processes:
            assert process.stdin is not None
            # Threads, for a rank that hangs before it reads must not keep the others from it.
            writer = threading.Thread(target=write, args=(process.stdin,), daemon=True)
            writer.start()
            self._writers.append(writer)

    def wait(self, check: Callable[[], object] = lambda: None) -> None:
        """Waits until all have ended well.

        Args:
            check: called again and again; what it raises ends the wait.

        Raises:
            ValueError: as a worker raised it.
            TrainingStoppedError: as a worker raised it, or one ended unexpectedly.
            TrainingTerminatedError: this process or a rank was asked to end.
        """
        with Termination().noted() as termination:
            told = False
            while True:
                if termination.is_requested and not told:
                    told = True
                    self._pass_on_termination()
                codes = [process.poll() for process in self._processes]
                failed = [rank for rank, code in enumerate(codes) if code]
                if failed:
                    time.sleep(_POLL_SECONDS)  # for the words of others that failed with it
                    raise self._error(failed, termination.is_requested)
                if all(code == 0 for code in codes):
                    return
                check()
                time.sleep(_POLL_SECONDS)

    def _pass_on_termination(self) -> None:
        """The ranks save their step together and end; this process then sees how."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def _start(self, local_rank: int, environment: dict[str, str]) -> None:
        rank = self._first_rank + local_rank
        log = (self._logs_dir / f"rank-{rank}.log").open("wb")
        self._log_files.append(log)
        shown = rank == 0
        passed = () if self._store_listener is None or rank else (self._store_listener,)
        process = subprocess.Popen(  # noqa: S603  a fixed command
            _COMMAND,
            env={
                **environment,
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                "MM1_ERROR_FILE": str(self._error_file(rank).absolute()),
                "MM1_STORE_LISTENER": str(passed[0]) if passed else "",
            },
            pass_fds=passed,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.PIPE if shown else subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes.append(process)
        if shown:
            self._relay = threading.Thread(target=_show, args=(process, log), daemon=True)
            self._relay.start()

    def _end(self) -> None:
        for process in self._processes:
            # The group too when its leader is gone: its data workers may be left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for writer in self._writers:
            writer.join()
        for process in self._processes:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        if self._relay is not None:
            self._relay.join(timeout=5)
        for log in self._log_files:
            log.close()

    def _error_file(self, rank: int) -> Path:
        return self._logs_dir / f"rank-{rank}.error.json"

    def _error(self, failed: list[int], terminated: bool) -> BaseException:
        """The error of the rank that failed first; others fail because it is gone."""
        told = [rank for rank in failed if self._error_file(self._first_rank + rank).exists()]
        ranks = [self._first_rank + rank for rank in told or failed]
        first = min(ranks, key=lambda rank: _modified(self._error_file(rank)))
        if told:
            content = json.loads(self._error_file(first).read_text(encoding="utf-8"))
            if kind := _ERRORS.get(content["kind"]):
                return kind(content["message"])
        code = self._processes[first - self._first_rank].returncode
        if terminated and code == -signal.SIGTERM:
            return TrainingTerminatedError(
                f"stopped by {signal.SIGTERM.name} before the first step; the same call begins "
                "where this one did"
            )
        return TrainingStoppedError(
            f"Found rank {first} of the training ended {_reason(code)}, expected it to go on. Its "
            f"last lines:\n{_last_lines(self._logs_dir / f'rank-{first}.log')}\nAll that the ranks "
            f"wrote: {self._logs_dir}. The other ranks were ended; the same call resumes from the "
            "last checkpoint."
        )


def _environment(
    num_processes: int, device: str, node: Node, interface: str | None
) -> dict[str, str]:
    variables = {
        **without_secret(dict(os.environ)),
        "WORLD_SIZE": str(node.count * num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "NODE_RANK": str(node.rank),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    # NCCL's status service would listen as well, without a password.
    variables.setdefault("NCCL_RAS_ENABLE", "0")
    if node.count == 1:
        # Whatever is set for other machines: here nobody else takes part.
        variables |= dict.fromkeys(_INTERFACES, loopback_interface())
    elif interface is not None:
        for name in _INTERFACES:
            variables.setdefault(name, interface)
    if device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        variables.setdefault("OMP_NUM_THREADS", str(threads))
    if sys.stderr.isatty():  # rank 0 writes to a pipe, but a person sees it
        columns = str(shutil.get_terminal_size().columns)
        variables |= {"FORCE_COLOR": "1", "COLUMNS": columns}
    return variables


def _show(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Passes on what rank 0 shows, as it comes."""
    assert process.stderr is not None
    while data := os.read(process.stderr.fileno(), 1 << 16):
        with contextlib.suppress(ValueError):  # closed while the last words were read
            log.write(data)
            log.flush()
        sys.stderr.write(data.decode(errors="replace"))
        sys.stderr.flush()


def _modified(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


def _reason(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (often for want of memory)" if name == "SIGKILL" else ""
    return f"by the signal {name}{hint}"


def _last_lines(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = _CONTROL_CODES.sub("", file.read().decode(errors="replace"))
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_LAST_LINES:]) or "  (none)"
