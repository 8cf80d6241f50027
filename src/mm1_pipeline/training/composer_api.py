"""The only door to Composer: imports what the package uses and undoes what that does.

Where Composer draws with another seed for a moment, it gathers the random states of all ranks as
pickles and uses its own; here it remembers its own (see `distributed.begin_together`).

Importing Composer has three side effects that a library must not have, all undone here:

- it replaces the process's SIGINT and SIGTERM handlers, so Ctrl-C would no longer raise
  KeyboardInterrupt (and would end a notebook's kernel);
- it needs `mcli`, the client of a platform that is not used here and that cannot be
  installed beside newer dependencies;
- it warns of deprecations inside itself that no user can mend.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType

from mm1_pipeline.training.random_state import random_state, restore_random_state

_HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restores the handlers of SIGINT and SIGTERM on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, so nothing can have changed
        return
    before = {number: signal.getsignal(number) for number in _HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; it cannot be set back.
            if handler is not None:
                signal.signal(number, handler)


if importlib.util.find_spec("mcli") is None:
    sys.modules.setdefault("mcli", ModuleType("mcli"))

with keep_signal_handlers(), warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    from composer import Callback, ComposerModel, DataSpec, Logger, State, Trainer
    from composer.utils import reproducibility


@contextlib.contextmanager
def _seed_context(seed: int) -> Iterator[None]:
    before = random_state()
    reproducibility.seed_all(seed)
    yield
    restore_random_state(before)


reproducibility.seed_context = _seed_context

__all__ = [
    "Callback",
    "ComposerModel",
    "DataSpec",
    "Logger",
    "State",
    "Trainer",
    "keep_signal_handlers",
]
