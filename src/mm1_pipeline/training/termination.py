"""A training that is asked to end (SIGTERM, as a scheduler does) ends after its step, saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_GRACE_SECONDS = 30.0
"""How long a process that reads data outlives its own SIGTERM."""


class Termination:
    """Notes a SIGTERM instead of dying of it."""

    def __init__(self) -> None:
        self.is_requested = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[Termination]:
        """Notes the signal inside the context; one that nobody acted on is sent again after it.

        Outside the main thread, which alone may handle signals, nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        owner = os.getpid()

        def note(number: int, frame: FrameType | None) -> None:
            if os.getpid() == owner:
                self.is_requested = True
                return
            signal.signal(number, signal.SIG_DFL)  # a forked process has no steps to end
            os.kill(os.getpid(), number)

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if self.is_requested:
            os.kill(owner, signal.SIGTERM)


def outlive_termination(worker_id: int = 0) -> None:
    """Lets a process that reads data go on for a while after a SIGTERM.

    Many schedulers send the signal to every process at once; without data the training could not
    end its step. A thread waits for it, so that one stuck in reading ends too.

    Args:
        worker_id: as `DataLoader` gives it; not used.
    """
    del worker_id
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        time.sleep(_GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, name="termination", daemon=True).start()
