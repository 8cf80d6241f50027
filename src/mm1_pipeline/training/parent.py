"""A process that does not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import threading
from typing import BinaryIO


def end_with_parent(pipe: BinaryIO) -> None:
    """Ends this process group when the other end of a pipe is gone, however it went.

    A parent that is killed cannot end its children; the kernel closes its pipes all the same.

    Args:
        pipe: read end; what still comes through it is ignored.
    """

    def watch() -> None:
        while os.read(pipe.fileno(), 1 << 12):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
