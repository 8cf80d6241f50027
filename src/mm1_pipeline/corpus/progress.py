"""How far reading a source has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mm1_pipeline.corpus.files import SourceFiles

T = TypeVar("T")

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.2
_LOG_SECONDS = 30.0


def track_source(
    items: Iterable[T], name: str, files: SourceFiles, max_records: int | None
) -> Iterator[T]:
    """Passes records through and shows their number, their rate and the time that is left.

    The end is known by the number of records where the reader or `max_records` tells it, else by
    the bytes of the files that were read.

    Args:
        items: what the reader yields.
        name: of the source.
        files: its files, which know how far they were read.
        max_records: number at which reading stops.
    """
    console = Console(stderr=True)
    start = shown = logged = time.monotonic()
    number = 0
    with _bar(console) as bar:
        task = bar.add_task(name, total=None, rate="")
        for number, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - shown < _REFRESH_SECONDS:
                continue
            shown = now
            share = _share_done(number, files, max_records)
            rate = f"{number / (now - start):,.0f} records/s"
            if console.is_terminal:
                total = None if not share else max(number, round(number / share))
                bar.update(task, completed=number, total=total, rate=rate)
            elif now - logged >= _LOG_SECONDS:
                logged = now
                left = f", about {(now - start) * (1 / share - 1):,.0f} s left" if share else ""
                logger.info("%s: %s records read, %s%s", name, f"{number:,}", rate, left)
    seconds = time.monotonic() - start
    logger.info("%s: %s records read in %.1f s", name, f"{number:,}", seconds)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _share_done(number: int, files: SourceFiles, max_records: int | None) -> float:
    """The part that is done, 0 to 1; 0 where nothing is known."""
    by_records = 0.0
    if files.expected_records:
        by_records = number / files.expected_records
    elif files.bytes_total:
        by_records = files.bytes_read / files.bytes_total
    by_limit = number / max_records if max_records else 0.0
    return min(1.0, max(by_records, by_limit))


class PartitionProgress:
    """Tells after each finished partition how fast they go and how long the rest will take.

    Args:
        name: of the source and the step.
        weights: raw bytes of the partitions that are left.
    """

    def __init__(self, name: str, weights: Sequence[int]) -> None:
        self._name = name
        self._count = len(weights)
        self._total = sum(weights)
        self._done = self._finished = self._records = 0
        self._start = time.monotonic()

    def advance(self, weight: int, num_records: int) -> None:
        """Counts a finished partition; one alone is told by `track_source`."""
        self._done += weight
        self._finished += 1
        self._records += num_records
        if self._count < 2:
            return
        seconds = max(time.monotonic() - self._start, 1e-9)
        left = seconds * (self._total / self._done - 1) if self._done else 0.0
        logger.info(
            "%s: partition %d of %d, %s records, %s records/s, about %s s left",
            self._name,
            self._finished,
            self._count,
            f"{self._records:,}",
            f"{self._records / seconds:,.0f}",
            f"{left:,.0f}",
        )
