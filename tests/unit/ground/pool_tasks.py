"""Tasks for processes of a pool, which import nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def die(task: str) -> str:
    how, _, marker = task.partition(" ")
    if how == "sleep":
        time.sleep(600)
    Path(marker).write_text(str(os.getpid()))
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(600)
    return task


def note(file: str) -> None:
    Path(file).touch()


def say_and_sleep(folder: str) -> None:
    (Path(folder) / f"pid{os.getpid()}").touch()
    time.sleep(600)
