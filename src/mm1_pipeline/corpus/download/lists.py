"""What lists of addresses have in common, whatever their rows are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage

Outcome = FetchedImage | Failed
Fetch = Callable[[str | None], Awaitable[Outcome]]

Row = TypeVar("Row")
Found = TypeVar("Found")
WrittenRow = TypeVar("WrittenRow", contravariant=True)
WrittenFound = TypeVar("WrittenFound", contravariant=True)


class Shard(Protocol[WrittenRow, WrittenFound]):
    """A shard that is being written."""

    num_kept: int
    """Images so far."""

    def add(self, listed: WrittenRow, found: WrittenFound, /) -> None:
        """Appends the outcome of the next row."""
        ...

    def finish(self) -> dict[str, Any]:
        """Gives the files their names, the statistics last, and returns these."""
        ...

    def abandon(self) -> None:
        """Removes what was written."""
        ...


class Lists(Protocol[Row, Found]):
    """Lists whose rows are of one kind."""

    @property
    def unit(self) -> str:
        """What a row is, in the plural."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files of a shard, besides its statistics."""
        ...

    def check(self, name: str, schema: pa.Schema, /) -> None:
        """Refuses a list without the columns that are needed; raises ValueError."""
        ...

    def read(self, limit: int | None, /) -> Iterator[list[Row]]:
        """The rows of each shard in turn, no more than the limit together."""
        ...

    def num_images(self, row: Row, /) -> int:
        """How much there is to fetch, at least 1."""
        ...

    async def fetch(self, row: Row, fetch: Fetch, /) -> Found:
        """Fetches what a row names."""
        ...

    def open(self, folder: Path, number: int, identity: str, /) -> Shard[Row, Found]:
        """Writes one shard."""
        ...


def texts(column: pa.Array) -> list[str | None]:
    """The texts of a column; what is no text is None, and bytes that are no UTF-8 are replaced."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [
            None if value is None else value.decode("utf-8", "replace")
            for value in column.cast(pa.large_binary()).to_pylist()
        ]
    return [value if isinstance(value, str) else None for value in values]
