"""Cuts the records of a source into partitions: what one process packs and writes as a unit.

Where a partition ends follows from the records and the parameters alone, so the sequences do
not depend on how many processes share the work. A partition's cost is known from the Parquet
files' columns of sizes and lengths; no image is read to plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.corpus.records import RECORD_SCHEMA, RECORDS, Record

_READ_RECORDS = 64
_IMAGE_COLUMNS = tuple(
    f"images.list.element.{name}" for name in ("url", "sha256", "width", "height")
)
_RECORD_COST = 1_000
"""Bytes a record costs beside its text and images; bounds the records of a partition."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive records of one source.

    Attributes:
        source: Name of the source.
        number: Of the partition in its source.
        first: Row of its first record in the source.
        num_records: Rows.
        cost: Bytes that its text and stored images come to, roughly: what progress counts.
    """

    source: str
    number: int
    first: int
    num_records: int
    cost: int


def record_costs(file: Path, config: ShardConfig) -> NDArray[np.int64]:
    """Roughly the bytes that each record of a Parquet file adds to the shards.

    Args:
        file: Of an artifact of records.
        config: Side of a sub-image, and how many an image may become.

    Returns:
        int64[num_records]; text counts twice, as its tokens take more room.
    """
    num_sub_images = 1 if config.sub_images.grid == 1 else 1 + config.sub_images.grid**2
    per_image = num_sub_images * config.image.size**2
    costs = []
    columns = ["segments.list.element.text", "images.list.element.width"]
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=columns).combine_chunks()
            costs.append(
                _RECORD_COST
                + 2 * _sum_by_record(table.column("segments"), "text")
                + per_image * _lengths(table.column("images"))
            )
    return np.concatenate(costs) if costs else np.zeros(0, np.int64)


def cut_partitions(source: str, costs: NDArray[np.int64], limit: int) -> list[Partition]:
    """Cuts a source where the next record would bring a partition over the limit.

    Args:
        source: Its name, as the shards' folder has it.
        costs: int64[num_records].
        limit: Cost of a partition; a record that is larger alone has one of its own.

    Returns:
        The partitions in order; one, though empty, for a source without records.
    """
    ends = np.cumsum(costs)
    partitions: list[Partition] = []
    first, before = 0, 0
    while first < len(costs) or not partitions:
        end = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        end = min(end, len(costs))
        after = int(ends[end - 1]) if end else 0
        number = len(partitions)
        partitions.append(Partition(source, number, first, end - first, after - before))
        first, before = end, after
    return partitions


def read_partition(
    records_dir: Path, partition: Partition, *, with_bytes: bool = True
) -> Iterator[Record]:
    """Reads the records of a partition in order, few at a time.

    Args:
        records_dir: The artifact that contains `records/`.
        partition: Which rows of which file of the artifact.
        with_bytes: False leaves the encoded images on disk; their sizes are read.
    """
    columns = None
    if not with_bytes:
        columns = [name for name in RECORD_SCHEMA.names if name != "images"]
        columns += _IMAGE_COLUMNS
    begin, end = partition.first, partition.first + partition.num_records
    position = 0
    for file in record_files(records_dir, partition.source):
        with pq.ParquetFile(file) as parquet:
            if position + parquet.metadata.num_rows <= begin:
                position += parquet.metadata.num_rows
                continue
            for group in range(parquet.num_row_groups):
                num_rows = parquet.metadata.row_group(group).num_rows
                low, high = max(begin - position, 0), min(end - position, num_rows)
                position += num_rows
                if low < high:
                    table = parquet.read_row_group(group, columns=columns).slice(low, high - low)
                    for batch in table.to_batches(max_chunksize=_READ_RECORDS):
                        yield from map(Record.from_row, batch.to_pylist())
        if position >= end:
            return


def record_files(records_dir: Path, source: str) -> list[Path]:
    """The Parquet files of a source, in order."""
    return sorted((Path(records_dir) / RECORDS / source).glob("part-*.parquet"))


def source_costs(records_dir: Path, source: str, config: ShardConfig, run: Any = map) -> Any:
    """Costs of all records of a source: see `record_costs`.

    Args:
        records_dir: The artifact that contains `records/`.
        source: Its name, as the shards' folder has it.
        config: As for `record_costs`.
        run: `map`, or that of a pool of processes.
    """
    costs = list(run(partial(record_costs, config=config), record_files(records_dir, source)))
    return np.concatenate(costs) if costs else np.zeros(0, np.int64)


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    lengths = pc.list_value_length(column).fill_null(0)  # pyright: ignore[reportAttributeAccessIssue]
    return lengths.to_numpy().astype(np.int64)


def _sum_by_record(column: pa.ChunkedArray, field: str) -> NDArray[np.int64]:
    """Bytes of a text field of each list's elements together."""
    counts = _lengths(column)
    elements = pc.list_flatten(column)  # pyright: ignore[reportAttributeAccessIssue]
    texts = pc.struct_field(elements, field)  # pyright: ignore[reportAttributeAccessIssue]
    sizes = pc.binary_length(texts).fill_null(0).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
    owners = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(owners, weights=sizes, minlength=len(counts)).astype(np.int64)
