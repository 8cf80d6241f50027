"""Stops a training that makes no step any more."""

from __future__ import annotations

import ctypes
import faulthandler
import threading
import time
from pathlib import Path

from mm1_pipeline.training.engine import Callback, LoopState

_CHECKS = 20
"""How often a time limit is looked at while it runs."""

_LONGEST_PAUSE_SECONDS = 5.0


class TrainingHangsError(BaseException):
    """Raised in the training's thread by the watchdog.

    No Exception, so that no handler for ordinary failures takes it for one of its own.
    """


class Watchdog(Callback):
    """Raises in the training's thread when a step lasts too long.

    Reading that waits for ever, in this process or for another, is interrupted so. A wait inside
    a collective cannot be: there the process group's own time limit ends it (`timeouts.
    collective_seconds`). What every thread was doing is written beside the metrics first.

    Args:
        limit_seconds: longest time that one step may take.
        work_dir: gets the stacks.
        rank: from 0; part of the file's name.
    """

    def __init__(self, limit_seconds: float, work_dir: Path, *, rank: int = 0) -> None:
        self._limit = limit_seconds
        self.stacks_file = work_dir / f"hang_rank_{rank}.txt"
        self._last = time.monotonic()
        self._step = 0
        self._target = threading.get_ident()
        self._ended = threading.Event()
        self.message: str | None = None
        """Set once it has fired."""

    def fit_start(self, state: LoopState) -> None:
        """Begins to watch."""
        self._target = threading.get_ident()
        self._touch(state)
        threading.Thread(target=self._watch, name="training-watchdog", daemon=True).start()

    def batch_end(self, state: LoopState) -> None:
        """A step is done."""
        self._touch(state)

    def batch_checkpoint(self, state: LoopState) -> None:
        """A checkpoint, if one was due, is written."""
        self._touch(state)

    def close(self, state: LoopState) -> None:
        """Ends the watch; called however a training ends."""
        self.stop()

    def stop(self) -> None:
        """Ends the watch; may be called twice."""
        self._ended.set()

    def _touch(self, state: LoopState) -> None:
        self._last, self._step = time.monotonic(), state.step

    def _watch(self) -> None:
        pause = min(self._limit / _CHECKS, _LONGEST_PAUSE_SECONDS)
        while not self._ended.wait(pause):
            silence = time.monotonic() - self._last
            if silence > self._limit:
                self._fire(silence)
                return

    def _fire(self, silence: float) -> None:
        with self.stacks_file.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.message = (
            f"Found no progress for {silence:.0f} s in step {self._step + 1}, expected a step "
            f"within {self._limit:.0f} s (timeouts.step_seconds). Where it waits: "
            f"{self.stacks_file}. Raise the limit if steps or checkpoints take that long; "
            "otherwise look at the disk, the data workers and the other ranks. The same call "
            "resumes from the last checkpoint."
        )
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._target), ctypes.py_object(TrainingHangsError)
        )
