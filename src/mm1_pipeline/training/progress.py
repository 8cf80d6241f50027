"""What a person sees of a training: a line at the start, a bar, a line at the end."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mm1_pipeline.training.metrics import TIMING, Row

_REFRESH_SECONDS = 0.2
_PLAIN_SECONDS = 60.0
_RATE_MEMORY = 0.9


class TrainingDisplay:
    """Shows a training on the terminal, or as a line a minute where there is none.

    The bar is drawn by the training loop itself: no thread that a data worker's fork could
    catch in the middle.

    Args:
        name: of the stage.
        num_steps: of the whole training.
        first_step: steps done before, when resuming.
        console: the standard error unless given.
    """

    def __init__(
        self, name: str, *, num_steps: int, first_step: int = 0, console: Console | None = None
    ) -> None:
        self._name = name
        self._num_steps = num_steps
        self._first_step = first_step
        self._console = console or Console(stderr=True)
        self._begun = self._drawn = time.monotonic()
        self._seconds_per_step = 0.0
        self._bar: Progress | None = None

    def start(self, facts: str) -> None:
        """Writes what starts and shows the bar."""
        self._line(facts)
        self._begun = self._drawn = time.monotonic()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[text]}"),
                console=self._console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task(
                self._name, total=self._num_steps, completed=self._first_step, text=""
            )
            self._bar.start()

    def update(self, row: Row) -> None:
        """Moves the bar to a step."""
        seconds = row[TIMING]["seconds"]
        memory = self._seconds_per_step or seconds
        pace = _RATE_MEMORY * memory + (1 - _RATE_MEMORY) * seconds
        self._seconds_per_step = pace
        pause = _REFRESH_SECONDS if self._bar else _PLAIN_SECONDS
        if time.monotonic() - self._drawn < pause and row["step"] != self._num_steps:
            return
        self._drawn = time.monotonic()
        left = (self._num_steps - row["step"]) * self._seconds_per_step
        text = f"{_rate(self._seconds_per_step)}  loss {row['loss']:.3f}  ETA {duration(left)}"
        if self._bar:
            self._bar.update(self._task, completed=row["step"], text=text, refresh=True)
        elif row["step"] != self._num_steps:
            self._line(f"step {row['step']}/{self._num_steps}  {text}")

    def finish(self, facts: str) -> None:
        """Removes the bar and writes how it ended."""
        self.stop()
        self._line(facts)

    @property
    def elapsed(self) -> str:
        """Time since `start`."""
        return duration(time.monotonic() - self._begun)

    def stop(self) -> None:
        """Removes the bar, so that an error's message starts on a clean line."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)


def compact(number: float) -> str:
    """A large number with three digits and a letter: 1.21B, 85.1M, 4.1k."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:  # so that 999,960 is 1M, not 1e+03k
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """A time as people write it: 42 s, 3:05 min, 2:05:09 h."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02} h"
    if minutes:
        return f"{minutes}:{whole % 60:02} min"
    return f"{whole} s"


def _rate(seconds_per_step: float) -> str:
    if seconds_per_step < 1:
        return f"{1 / seconds_per_step:.1f} steps/s"
    return f"{seconds_per_step:.1f} s/step"
