"""Processes that end with the one that started them, and what to say when one is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, BinaryIO, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2
"""Items that are handed to the pool at a time, for each process."""
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 5.0


class WorkerPool:
    """Processes that work on items, and end with this one, however it ends.

    They are spawned: forking a process that runs threads (Arrow, tokenizers) can deadlock. None is
    started before there is work. Leaving the block by an error drops what waits.

    Args:
        num_workers: How many.
        doing: Completes "a process ended while it".
        advice: What to change if it repeats.
    """

    def __init__(self, num_workers: int, *, doing: str, advice: str) -> None:
        self._num_workers, self._doing, self._advice = num_workers, doing, advice
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)
            self._pool = None

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Calls a function for each item and yields number and result, in the order of their ends.

        Args:
            function: Of a module's top level, because it is sent to other processes.
            items: What can be pickled; read as they are needed.

        Raises:
            RuntimeError: A process ended; says which, how, and what to do.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._num_workers, mp_context=get_context("spawn"), initializer=end_with_parent
            )
        pool, numbered = self._pool, enumerate(items)
        running: dict[Future[Result], int] = {}
        processes: dict[int, BaseProcess] = {}  # for the pool may forget those that are gone
        try:
            while True:
                while len(running) < _AHEAD * self._num_workers and (item := next(numbered, None)):
                    running[pool.submit(function, item[1])] = item[0]
                if not running:
                    return
                done = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done
                processes |= pool._processes or {}
                if not done and any(process.exitcode is not None for process in processes.values()):
                    # Python waits for the ends of those processes only that it had started when it
                    # began to wait, until a result comes. The end of the others tells it.
                    for process in processes.values():
                        process.terminate()
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"{_how_ended(list(processes.values()))} while it {self._doing}, expected it to go "
                f"on. Start again: finished parts are kept. {self._advice} if it repeats."
            ) from error


def end_with_parent(pipe: BinaryIO | None = None) -> None:
    """Has this process end when the one that started it is gone, however it went.

    A parent that is killed cannot end its children, and they would wait for work for ever; but the
    kernel closes its pipes.

    Args:
        pipe: Whose other end the parent holds; what still comes through it is ignored. This
            process leads a group, which ends with it. None: `multiprocessing` started this process.
    """
    parent = parent_process()

    def watch() -> None:
        if pipe is not None:
            while os.read(pipe.fileno(), 1 << 12):
                pass
            os.killpg(0, signal.SIGKILL)
        assert parent is not None, "started by multiprocessing"
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _how_ended(processes: list[BaseProcess]) -> str:
    """Says which process of a broken pool ended first, and how.

    The others are ended (SIGTERM) when it is seen that one is gone.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    ended = [process for process in processes if process.exitcode not in (None, 0)]
    first = [process for process in ended if process.exitcode != -signal.SIGTERM] or ended
    if not first:
        return "A worker process ended"
    code = first[0].exitcode
    assert code is not None
    who = f"The worker process {first[0].pid} ended"
    if code >= 0:
        return f"{who} with exit code {code}"
    hint = ", often sent for want of memory," if code == -signal.SIGKILL else ""
    return f"{who} by the signal {signal.Signals(-code).name}{hint}"
