"""How far work has come: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from rich import progress as bars
from rich.console import Console

from mm1_pipeline.ground.formatting import duration, speed

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.2
_LOG_SECONDS = 30.0
_LEAST_LEFT = 1.0
"""Seconds that are said to be left at least, where something is."""
_RATE_MEMORY = 0.9
"""Weight of the earlier ones in a moving average of seconds."""


class Progress:
    """Shows a name, the share that is done, what was counted, its rate and the time that is left.

    Number and rate are in what people count (records, items); the share and the time that is left
    follow the work, which may be measured otherwise (bytes, positions), as records differ.

    Args:
        name: What is being done.
        unit: What is counted, in the plural.
        total: All of the work; None where that is not known.
        done: Work of an earlier run, which does not count for the rate.
        log_seconds: Time between two lines where there is no bar; 0 says each step.
        log: Gets the lines; None writes them to the console.
        console: The standard error unless given.
        has_bar: False gives lines alone.
        has_thread: False has the bar drawn by `update` alone, where processes are forked
            meanwhile: a fork can catch a thread in the middle.
        eta_after: Seconds before which nothing is said of those that are left, where the first
            moments tell little of the rest.
    """

    def __init__(
        self,
        name: str,
        *,
        unit: str,
        total: float | None = None,
        done: float = 0,
        log_seconds: float | None = None,
        log: logging.Logger | None = logger,
        console: Console | None = None,
        has_bar: bool = True,
        has_thread: bool = True,
        eta_after: float = 0.0,
    ) -> None:
        self._name, self._unit, self._total = name, unit, total
        self._done = self._before = self._count = self._count_before = float(done)
        self._counts_work = True
        self._log_seconds = _LOG_SECONDS if log_seconds is None else log_seconds
        self._log = log
        self._console = console or Console(stderr=True)
        self._seconds_each: float | None = None
        self._eta_after = eta_after
        self._done_shown, self._moment_shown = self._done, -math.inf
        self._begun = self._shown = self._moment_shown = time.monotonic()
        self._done_shown = self._done
        self._bar: bars.Progress | None = None
        if has_bar and self._console.is_terminal:
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(bar_width=20),
                bars.TextColumn("{task.fields[text]}", markup=False),
                bars.TimeElapsedColumn(),
                console=self._console,
                transient=True,
                auto_refresh=has_thread,
            )
            self._task = self._bar.add_task(name, total=total, text="")
            self._bar.update(self._task, completed=done)

    def __enter__(self) -> Progress:
        return self.start()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.stop()
        if error is None:
            self.say(f"{self._amount()} in {self.elapsed}")

    def start(self, facts: str = "") -> Progress:
        """Says what starts, and shows the bar."""
        if facts:
            self.say(facts)
        self._begun = self._shown = time.monotonic()
        if self._bar:
            self._shown = -math.inf
            self._bar.start()
        return self

    def stop(self) -> None:
        """Removes the bar, so that what is said next starts on a clean line."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def say(self, text: str, name: str | None = None) -> None:
        """A line after the name, in the log or on the console."""
        line = f"{self._name if name is None else name}: {text}"
        if self._log is None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self._log.info("%s", line)

    @property
    def elapsed(self) -> str:
        """Time since the start."""
        return duration(time.monotonic() - self._begun)

    def advance(
        self, work: float, *, count: float | None = None, note: str = "", counted: str = ""
    ) -> None:
        """Counts work that was just done; arguments as of `update`, but what came to it."""
        more = None if count is None else self._count + count
        self.update(self._done + work, count=more, note=note, counted=counted)

    def skip(self, work: float) -> None:
        """Counts work that an earlier run did, or a part of it that needs none."""
        for name in ("_done", "_before", "_count", "_count_before"):
            setattr(self, name, getattr(self, name) + work)

    def update(
        self,
        done: float,
        *,
        count: float | None = None,
        note: str = "",
        seconds: float | None = None,
        counted: str = "",
    ) -> None:
        """Moves to where the work is now.

        Args:
            done: Work; 0 where the share that is done is not known yet.
            count: In `unit`; the work itself unless given.
            note: Shown behind the rate.
            seconds: Of the last one counted: the rate is then that of the last ones, not of all.
            counted: Said instead of number and rate.
        """
        self._done, self._count = done, done if count is None else count
        self._counts_work = count is None
        if seconds is not None:
            before = self._seconds_each or seconds
            self._seconds_each = _RATE_MEMORY * before + (1 - _RATE_MEMORY) * seconds
        at_end = self._counts_work and self._total is not None and done >= self._total
        if self._bar and (at_end or self.is_due()):
            total = self._total if done else None
            text = self._text(note, counted, "  ")
            self._bar.update(self._task, completed=done, total=total, text=text, refresh=True)
        elif not self._bar and not at_end and self.is_due():
            self.say(self._text(note, counted, ", "))
        else:
            return
        self._shown = time.monotonic()

    def is_due(self) -> bool:
        """Whether `update` would show anything now; what is costly to know can wait until then."""
        pause = _REFRESH_SECONDS if self._bar else self._log_seconds
        return time.monotonic() - self._shown >= pause

    def part(self, name: str, num_items: int, work_per_item: float) -> ProgressPart:
        """Begins a part of the work, whose items take alike; the bar shows its name."""
        if self._bar:
            self._bar.update(self._task, description=name)
        return ProgressPart(self, name, self._unit, num_items, work_per_item)

    def _amount(self) -> str:
        number = f"{self._count:,.0f}"
        if self._counts_work and self._total is not None and self._done < self._total:
            number += f"/{self._total:,.0f}"
        return f"{number} {self._unit}"

    def _text(self, note: str, counted: str, between: str) -> str:
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        rate = (self._count - self._count_before) / seconds
        work_rate = (self._done - self._before) / seconds
        if self._seconds_each is not None:
            rate = work_rate = 1 / max(self._seconds_each, 1e-9)
        parts = [counted] if counted else [self._amount(), speed(rate, self._unit)]
        if self._total is not None and self._done:
            parts.insert(0, f"{100 * min(1.0, self._done / self._total):.0f} %")
        parts += [note] if note else []
        if (left := self._seconds_left(now, work_rate)) is not None:
            parts.append(f"ETA {duration(left)}")
        return between.join(parts)

    def _seconds_left(self, now: float, rate: float) -> float | None:
        """What is left by the slower of the rates, of all and of what came last.

        A reader takes the first part of a file at once and works on it for a while, so what was
        done by the clock's first moments says little, and nothing is done in no time.
        """
        since, moment = self._done - self._done_shown, now - self._moment_shown
        self._done_shown, self._moment_shown = self._done, now
        if self._seconds_each is None:
            if now - self._begun < self._eta_after:
                return None
            rate = min(rate, since / moment) if since > 0 and moment > 0 else rate
        if self._total is None or rate <= 0:
            return None
        left = max(0.0, self._total - self._done) / rate
        return max(left, _LEAST_LEFT) if left else left


class ProgressPart:
    """A part of the work that is counted by itself; made by `Progress.part`."""

    def __init__(
        self, owner: Progress, name: str, unit: str, num_items: int, work_per_item: float
    ) -> None:
        self._owner, self._name, self._unit = owner, name, unit
        self._num_items, self._work_per_item = num_items, work_per_item
        self._num_done = 0.0
        self._begun = time.monotonic()

    def advance(self, num_items: float) -> None:
        """Counts items that were just done, or the part of one."""
        self._num_done += num_items
        counted = f"{self._num_done:.0f}/{self._num_items} {self._unit}, {self._speed()}"
        self._owner.advance(num_items * self._work_per_item, count=num_items, counted=counted)

    def finish(self, result: str) -> None:
        """Says what came out and how fast."""
        took = duration(time.monotonic() - self._begun)
        self._owner.say(
            f"{result}; {round(self._num_done)} {self._unit} in {took} ({self._speed()})",
            self._name,
        )

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return speed(self._num_done / seconds, self._unit)
