"""Finds what repeats in a source, by joins over columns of hashes and never over contents.

The tables are processed by Daft, which spreads over the cores of one machine; its Ray runner
spreads the same queries over many.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.config.ingest import DeduplicationConfig

HASH_SCHEMA = pa.schema([("position", pa.int64()), ("hash", pa.binary(16))])
"""One row a record: its place in the source, and the hash of its content."""

_ROWS_AT_ONCE = 50_000


class TableWriter:
    """Writes a narrow table row by row.

    Args:
        path: the Parquet file.
        schema: its columns.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._flush()
        self._writer.close()

    def add(self, *row: Any) -> None:
        """Appends one row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


class Duplicates:
    """Places of the records that repeat an earlier one, and the places of those.

    Args:
        positions: int64[N], ascending.
        originals: int64[N], the place of the record that each repeats.
    """

    def __init__(self, positions: np.ndarray, originals: np.ndarray) -> None:
        self._positions = positions
        self._originals = originals
        self._wanted = np.unique(originals)

    def __len__(self) -> int:
        return len(self._positions)

    def original_of(self, position: int) -> int | None:
        """The place of the record that this one repeats; None where it repeats nothing."""
        index = int(np.searchsorted(self._positions, position))
        found = index < len(self._positions) and self._positions[index] == position
        return int(self._originals[index]) if found else None

    def is_original(self, position: int) -> bool:
        """Whether later records repeat this one."""
        index = int(np.searchsorted(self._wanted, position))
        return index < len(self._wanted) and self._wanted[index] == position


NO_DUPLICATES = Duplicates(np.empty(0, np.int64), np.empty(0, np.int64))


def find_duplicates(config: DeduplicationConfig, hashes: Path) -> Duplicates:
    """Finds the records that are to go, whatever the methods that are switched on.

    Near-duplicates join here: another table beside `hashes`, another method, the same result.

    Args:
        config: which methods are on.
        hashes: Parquet file of HASH_SCHEMA.
    """
    return find_exact_duplicates(hashes) if config.exact else NO_DUPLICATES


def find_exact_duplicates(hashes: Path) -> Duplicates:
    """Finds the records whose hash an earlier record has; the earliest stays.

    Args:
        hashes: Parquet file of HASH_SCHEMA.
    """
    daft = _import_daft()
    table = daft.read_parquet(str(hashes))
    position = daft.col("position")
    first = table.groupby("hash").agg(position.min().alias("original"))
    repeated = table.join(first, on="hash").where(position > daft.col("original"))
    found = repeated.select("position", "original").sort("position").to_arrow()
    return Duplicates(found["position"].to_numpy(), found["original"].to_numpy())


def find_frequent(path: Path, column: str, max_occurrences: int) -> frozenset[str]:
    """Values of a text column that occur more often than allowed; nulls do not count.

    Args:
        path: Parquet file.
        column: its name.
        max_occurrences: allowed.
    """
    daft = _import_daft()
    values = daft.read_parquet(str(path)).where(daft.col(column).not_null())
    counted = values.groupby(column).agg(daft.col(column).count().alias("occurrences"))
    frequent = counted.where(daft.col("occurrences") > max_occurrences).select(column)
    return frozenset(_values(frequent.to_arrow(), column))


def _values(table: pa.Table, column: str) -> Iterator[str]:
    yield from table[column].to_pylist()


def _import_daft() -> ModuleType:
    """Imports Daft, late because it takes half a second, and without its reports to its makers."""
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    logging.getLogger("tracing").setLevel(logging.WARNING)  # Daft tells every step of a query
    import daft

    return daft
