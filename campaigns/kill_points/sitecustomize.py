"""Kills the whole run at its N-th change of a file; Python loads this by its name at every start.

The parameters are environment variables, so that all processes of a run share them:

    MM1_KILL_COUNTER    a file; one byte is added for every change, whichever process makes it
    MM1_KILL_AT         the change at which the process group is killed, before it happens
    MM1_KILL_BELOW      only changes of files below this folder count
"""

import os
import signal
import sys

_COUNTER = os.environ.get("MM1_KILL_COUNTER")
_AT = int(os.environ.get("MM1_KILL_AT", "0"))
_BELOW = os.environ.get("MM1_KILL_BELOW", "")
_CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITING:
            return
    elif event in _CHANGES:
        path = arguments[0]
    else:
        return
    try:
        name = os.path.abspath(os.fsdecode(path))
    except (TypeError, ValueError):
        return  # a file by its descriptor
    if not name.startswith(_BELOW):
        return
    # The end of a file that all append to is a counter without a lock.
    descriptor = _open(_COUNTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, b".")
        number = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if _AT and number >= _AT:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _open(path, flags):
    _busy.append(True)
    try:
        return os.open(path, flags)
    finally:
        _busy.pop()


_busy: list[bool] = []

if _COUNTER:
    sys.addaudithook(lambda event, arguments: None if _busy else _hook(event, arguments))
