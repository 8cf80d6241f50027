"""What a person sees of an evaluation: one bar over all prompts, with rate and time left."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class EvaluationProgress:
    """A bar on a terminal; a log line at the end of each part anywhere.

    All that is asked is in it, images and text. The bar moves by positions, because a prompt with
    shots takes several times as long as one without; the rate is in items, because people count
    those.

    Args:
        total_positions: Of all prompts and answers.
        console: The standard error unless given.
    """

    def __init__(self, total_positions: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %  {task.fields[rate]}  ETA"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("evaluate", total=total_positions, rate="")

    def __enter__(self) -> EvaluationProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def part(self, name: str, num_items: int, positions_per_item: float) -> ProgressPart:
        """Begins the items of one model, task and number of shots."""
        self._bar.update(self._task, description=name)
        return ProgressPart(self, name, num_items, positions_per_item)

    def advance(self, positions: float, rate: str) -> None:
        """Moves the bar."""
        self._bar.update(self._task, advance=positions, rate=rate)


class ProgressPart:
    """The items of one model, task and number of shots."""

    def __init__(
        self, owner: EvaluationProgress, name: str, num_items: int, positions_per_item: float
    ) -> None:
        self._owner = owner
        self._name = name
        self._num_items = num_items
        self._positions_per_item = positions_per_item
        self._num_done = 0.0
        self._begun = time.monotonic()

    def advance(self, num_items: float) -> None:
        """Counts items that were just answered, or the part of one."""
        self._num_done += num_items
        rate = f"{self._num_done:.0f}/{self._num_items} items, {self._items_per_second():.1f}/s"
        self._owner.advance(num_items * self._positions_per_item, rate)

    def finish(self, result: str) -> None:
        """Logs what came out and how fast."""
        logger.info(
            "%s: %s; %d items in %.1f s (%.1f/s)",
            self._name,
            result,
            round(self._num_done),
            time.monotonic() - self._begun,
            self._items_per_second(),
        )

    def _items_per_second(self) -> float:
        return self._num_done / max(time.monotonic() - self._begun, 1e-9)
