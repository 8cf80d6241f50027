"""How far a piece of known work has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)

_LOG_SECONDS = 30.0


class WorkProgress:
    """Shows the share of work done, its rate and the time that is left.

    Args:
        name: What is being done.
        total: All of the work.
        unit: What it is counted in.
        done: What an earlier run did already; it does not count for the rate.
        log_seconds: Time between two lines of a log.
    """

    def __init__(
        self,
        name: str,
        total: float,
        unit: str,
        *,
        done: float = 0,
        log_seconds: float = _LOG_SECONDS,
    ) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._before = self._done = done
        self._log_seconds = log_seconds
        self._start = self._logged = time.monotonic()
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, rate="")
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> WorkProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            seconds = time.monotonic() - self._start
            logger.info("%s: %s in %.1f s", self._name, self._amount(self._done), seconds)

    def advance(self, amount: float, note: str = "") -> None:
        """Counts work as done.

        Args:
            amount: In `unit`.
            note: Shown behind the rate.
        """
        self._done += amount
        now = time.monotonic()
        rate = (self._done - self._before) / max(now - self._start, 1e-6)
        shown = f"{rate:,.0f} {self._unit}/s {note}".strip()
        self._bar.update(self._task, completed=self._done, rate=shown)
        if not self._console.is_terminal and now - self._logged >= self._log_seconds:
            self._logged = now
            left = (self._total - self._done) / rate if rate else float("inf")
            done = f"{self._amount(self._done)} of {self._total:,.0f}"
            logger.info("%s: %s, %s, about %s s left", self._name, done, shown, f"{left:,.0f}")

    def skip(self, amount: float) -> None:
        """Counts work as done by an earlier run; it does not count for the rate."""
        self._done += amount
        self._before += amount

    def _amount(self, amount: float) -> str:
        return f"{amount:,.0f} {self._unit}"
