"""How far reading a source has come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.ground.progress import Progress

T = TypeVar("T")
_ETA_AFTER = 5.0
"""Seconds. A file's first bytes are read ahead in a moment, whatever its records take."""


def track_source(
    items: Iterable[T], name: str, files: SourceFiles, max_records: int | None
) -> Iterator[T]:
    """Passes records through and shows their number, their rate and the time that is left.

    The end is known by the number of records where the reader or `max_records` tells it, else by
    the bytes of the files that were read.

    Args:
        items: what the reader yields.
        name: the source, as the display names it.
        files: its files, which know how far they were read.
        max_records: number at which reading stops.
    """
    with Progress(name, unit="records", total=1.0, eta_after=_ETA_AFTER) as progress:
        number = 0
        for number, item in enumerate(items, start=1):
            yield item
            if progress.is_due():
                progress.update(share_done(number, files, max_records), count=number)
        progress.update(1.0, count=number)


def share_done(number: int, files: SourceFiles, max_records: int | None) -> float:
    """The part of a source that is read, 0 to 1; 0 where nothing is known."""
    by_records = 0.0
    if files.expected_records:
        by_records = number / files.expected_records
    elif files.bytes_total:
        by_records = files.bytes_read / files.bytes_total
    by_limit = number / max_records if max_records else 0.0
    return min(1.0, max(by_records, by_limit))
