"""Work for the processes of a pool, and what to say when one of them is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Result = TypeVar("Result")

_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 5.0


def run_in_pool(
    pool: ProcessPoolExecutor,
    function: Callable[[Any], Result],
    items: Iterable[Any],
    *,
    ahead: int,
    doing: str,
    advice: str,
) -> Iterator[tuple[int, Result]]:
    """Calls a function for each item and yields number and result, in the order they get ready.

    Args:
        pool: its processes.
        function: of a module's top level, because it is sent to other processes.
        items: what can be pickled; read as they are needed.
        ahead: how many are handed to the pool at a time.
        doing: completes "a process ended while it".
        advice: what to change if it repeats.

    Raises:
        RuntimeError: a process ended; says which, how, and what to do.
    """
    numbered = enumerate(items)
    running: dict[Future[Result], int] = {}
    processes: dict[int, BaseProcess] = {}  # for the pool may forget those that are gone
    try:
        while True:
            while len(running) < ahead and (item := next(numbered, None)):
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
            f"{_how_ended(list(processes.values()))} while it {doing}, expected it to go on. Start "
            f"again: finished parts are kept. {advice} if it repeats."
        ) from error


def end_with_parent() -> None:
    """Ends a process of a pool whose parent was killed; it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "runs in a process of the pool"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
