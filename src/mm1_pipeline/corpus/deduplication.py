"""Finds what repeats in a source, or repeats an earlier source, by joins over columns of keys and
never over contents.

The tables are processed by Daft, on the cores of one machine or, with Ray, on many. A table of
more rows than are wanted in memory is gone through in several passes, each over a part of the
keys, so that what a query holds does not grow with the number of records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mm1_pipeline.config.corpus_rules import DeduplicationConfig, MinHashConfig
from mm1_pipeline.corpus import perceptual_hash
from mm1_pipeline.corpus.columns import to_array, to_numbers
from mm1_pipeline.corpus.engine import import_daft
from mm1_pipeline.ground.rejects import Reason

PARTITION_STRIDE = 1 << 40
"""Records that a partition can number: the order of a record in its source is the number of its
partition times this, plus its place."""

KEY_SCHEMA = pa.schema([("order", pa.int64()), ("key", pa.int64())])
"""One row for each key of a record; two records that share a key are alike."""
IMAGE_SCHEMA = pa.schema([("order", pa.int64()), ("url", pa.string()), ("sha256", pa.string())])
HASH_SCHEMA = pa.schema(
    [("order", pa.int64()), ("perceptual_hash", pa.binary(perceptual_hash.NUM_BYTES))]
)
ORDER_SCHEMA = pa.schema([("order", pa.int64())])
NAME_SCHEMA = pa.schema([("order", pa.int64()), ("name", pa.string())])
DROPPED = "dropped.parquet"
"""Records that neither near-duplicates nor pictures are compared with; ORDER_SCHEMA."""

ROWS_PER_PASS = 50_000_000
"""Rows of a table that a query looks at together."""
_ROWS_AT_ONCE = 20_000
_COMPARED_AT_ONCE = 50_000
_BLANKS = re.compile(r"\W+")


@dataclass(frozen=True)
class EarlierSource:
    """What an earlier source left to be compared with.

    Its records get numbers below those of the source that is searched: below zero.
    """

    name: str
    tables: Mapping[str, Sequence[Path]]
    """As `find_repeats` takes them; a method without its table does not look here."""
    dropped: Sequence[Path]
    """DROPPED of its own search."""
    shift: int
    """Added to the numbers of its records."""


@dataclass(frozen=True)
class _Table:
    """A table of the source that is searched, and the same of earlier sources before it."""

    paths: Sequence[Path]
    earlier: Sequence[tuple[Sequence[Path], int]] = ()

    @property
    def num_rows(self) -> int:
        return _num_rows(self.paths) + sum(_num_rows(paths) for paths, _ in self.earlier)

    def read(self, *columns: str) -> Any:
        """Some columns of all rows, numbered through."""
        daft = import_daft()
        table = daft.read_parquet(list(map(str, self.paths))).select(*columns)
        for paths, shift in self.earlier:
            rows = daft.read_parquet(list(map(str, paths))).select(*columns)
            table = table.concat(rows.with_column("order", daft.col("order") + shift))
        return table


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
            to_array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


def text_key(text: str) -> int:
    """A key that texts share when only case, blanks and punctuation tell them apart."""
    return xxhash.xxh3_64_intdigest(_BLANKS.sub(" ", text.lower()).strip().encode()) >> 1


def min_hash_keys(texts: Sequence[str], config: MinHashConfig) -> np.ndarray:
    """One key a band for each text; near-duplicates share at least one, most likely.

    Args:
        texts: of the records.
        config: bands, rows and n-grams.

    Returns:
        int64[num_texts, num_bands]; a text without words has keys of its own.
    """
    normal = [_BLANKS.sub(" ", text.lower()).strip() for text in texts]
    hashed = import_daft().Series.from_arrow(to_array(normal, pa.large_string()))
    signatures = hashed.minhash(
        num_hashes=config.num_bands * config.rows_per_band,
        ngram_size=config.ngram_words,
        seed=config.seed,
        hash_function="xxhash64",
    ).to_arrow()
    if isinstance(signatures, pa.ChunkedArray):
        signatures = signatures.combine_chunks()
    values = to_numbers(signatures.flatten(), np.uint32)
    rows = np.ascontiguousarray(values.reshape(len(texts), config.num_bands, -1))
    keys = [
        [
            xxhash.xxh3_64_intdigest(band.tobytes(), seed=number) >> 1
            for number, band in enumerate(row)
        ]
        for row in rows
    ]
    return np.array(keys, np.int64).reshape(len(texts), config.num_bands)


def find_frequent(paths: Sequence[Path], column: str, max_occurrences: int, output: Path) -> None:
    """Finds values of a text column that occur too often, and in which partitions.

    Args:
        paths: Parquet files of IMAGE_SCHEMA.
        column: of which values are counted; nulls do not count.
        max_occurrences: allowed.
        output: gets a file a partition; must not exist.
    """
    daft = import_daft()
    output.mkdir(parents=True)
    value, order = daft.col(column), daft.col("order")
    for number, passes in _passes(_Table(paths)):
        table = daft.read_parquet(list(map(str, paths))).where(value.not_null())
        if passes > 1:
            table = table.where(value.hash() % passes == number)
        counted = table.groupby(column).agg(order.count().alias("occurrences"))
        frequent = counted.where(daft.col("occurrences") > max_occurrences).select(column)
        found = table.join(frequent, on=column, how="semi")
        partition = (order // PARTITION_STRIDE).cast(daft.DataType.int64())
        rows = found.select(partition.alias("partition"), value.alias("value")).distinct()
        _write_by_partition(rows, output / f"{column}-{number}")


def read_frequent(folder: Path, partition: int) -> frozenset[str]:
    """The values that `find_frequent` found and that a partition has."""
    return frozenset(row["value"] for row in _read_partition(folder, partition))


def find_repeats(
    config: DeduplicationConfig,
    tables: Mapping[str, Sequence[Path]],
    output: Path,
    work: Path,
    earlier: Sequence[EarlierSource] = (),
) -> None:
    """Finds the records that are to go because they repeat others.

    Exact duplicates go first, so that they do not make a caption frequent; what is dropped for
    its caption is no original of a picture. But for the captions' frequency, which is counted in
    each source, sources that are searched one after the other lose what one source of all their
    records would.

    Args:
        config: which methods are on.
        tables: by name: `exact`, `captions`, `near`, `pictures` (KEY_SCHEMA), `perceptual_hashes`
            (HASH_SCHEMA) and `names` (NAME_SCHEMA); a method without its table is off.
        output: gets the repeats of every partition, and DROPPED; must not exist.
        work: folder for tables in between; must not exist.
        earlier: sources whose records must not be repeated either.
    """
    work.mkdir(parents=True)
    output.mkdir(parents=True)
    found: list[Path] = []

    def table(name: str) -> _Table:
        others = [(one.tables[name], one.shift) for one in earlier if name in one.tables]
        return _Table(tables[name], others)

    def repeated(name: str, reason: Reason, dropped: _Table) -> list[Path]:
        return _find_repeated_keys(table(name), reason, dropped, work)

    if config.exact:
        found += repeated("exact", Reason.DUPLICATE, _Table([]))
    if config.max_caption_occurrences is not None and "captions" in tables:
        found += _find_frequent_keys(
            tables["captions"], config.max_caption_occurrences, found, work
        )
    _copy_orders(found, output / DROPPED)
    before = _Table([output / DROPPED], [(one.dropped, one.shift) for one in earlier])
    if config.near is not None and "near" in tables:
        found += repeated("near", Reason.NEAR_DUPLICATE, before)
    if config.perceptual and "pictures" in tables:
        pairs = repeated("pictures", Reason.IMAGE_DUPLICATE, before)
        hashes, allowed = table("perceptual_hashes"), config.max_picture_difference
        found.append(_verify_pictures(pairs, hashes, allowed, work))
    if _num_rows(found):
        _write_named(found, tables["names"], earlier, output / "repeats")


def _copy_orders(found: Sequence[Path], path: Path) -> None:
    with pq.ParquetWriter(path, ORDER_SCHEMA) as writer:
        for file in found:
            with pq.ParquetFile(file) as rows:
                for batch in rows.iter_batches(columns=["order"]):
                    writer.write_batch(batch.cast(ORDER_SCHEMA))


def _write_named(
    found: Sequence[Path],
    names: Sequence[Path],
    earlier: Sequence[EarlierSource],
    output: Path,
) -> None:
    """Writes repeats with the keys of what they repeat; those of other sources say which."""
    daft = import_daft()
    order, name = daft.col("order"), daft.col("name")
    originals = daft.read_parquet(list(map(str, names)))
    originals = originals.select(order.alias("original"), name)
    for one in earlier:
        theirs = daft.read_parquet(list(map(str, one.tables["names"])))
        shifted = (order + one.shift).alias("original")
        full_name = (daft.lit(f"{one.name}/") + name).alias("name")
        originals = originals.concat(theirs.select(shifted, full_name))
    repeats = daft.read_parquet(list(map(str, found)))
    named = repeats.join(originals, on="original", how="left")
    partition = (order // PARTITION_STRIDE).cast(daft.DataType.int64())
    _write_by_partition(
        named.select(partition.alias("partition"), order, daft.col("reason"), name), output
    )


def read_repeats(folder: Path, partition: int) -> dict[int, tuple[Reason, str | None]]:
    """Places of the records of a partition that are to go: why, and what each repeats."""
    start = partition * PARTITION_STRIDE
    rows = sorted(
        _read_partition(folder, partition), key=lambda row: (row["order"], row["name"] or "")
    )
    return {row["order"] - start: (Reason(row["reason"]), row["name"]) for row in reversed(rows)}


def _find_repeated_keys(keys: _Table, reason: Reason, dropped: _Table, work: Path) -> list[Path]:
    """Writes the records that share a key with an earlier one, and the earliest of those."""
    daft = import_daft()
    order, key = daft.col("order"), daft.col("key")
    written = []
    for number, passes in _passes(keys):
        table = _without(keys.read("order", "key"), dropped)
        if passes > 1:
            table = table.where(key % passes == number)
        first = table.groupby("key").agg(order.min().alias("original"))
        # Of earlier sources nothing is to go.
        later = table.where(order >= 0) if keys.earlier else table
        repeated = later.join(first, on="key").where(order > daft.col("original"))
        written.append(_collect(repeated.select("order", "original"), work / f"{reason}-{number}"))
    table = daft.read_parquet(list(map(str, written)))
    if reason == Reason.IMAGE_DUPLICATE:  # every pair is compared before one is chosen
        pairs = table.distinct()
    else:
        pairs = table.groupby("order").agg(daft.col("original").min().alias("original"))
    pairs = pairs.with_column("reason", daft.lit(reason.value))
    return [_collect(pairs.select("order", "original", "reason"), work / f"{reason}")]


def _find_frequent_keys(
    paths: Sequence[Path], max_occurrences: int, dropped: list[Path], work: Path
) -> list[Path]:
    daft = import_daft()
    order, key = daft.col("order"), daft.col("key")
    reason = Reason.CAPTION_TOO_FREQUENT
    written = []
    for number, passes in _passes(_Table(paths)):
        table = _without(_Table(paths).read("order", "key"), _Table(dropped))
        if passes > 1:
            table = table.where(key % passes == number)
        counted = table.groupby("key").agg(order.count().alias("occurrences"))
        frequent = counted.where(daft.col("occurrences") > max_occurrences).select("key")
        found = table.join(frequent, on="key", how="semi").select(
            order,
            daft.lit(None).cast(daft.DataType.int64()).alias("original"),
            daft.lit(reason.value).alias("reason"),
        )
        written.append(_collect(found, work / f"{reason}-{number}"))
    return written


def _verify_pictures(pairs: list[Path], hashes: _Table, max_difference: float, work: Path) -> Path:
    """Keeps the pairs of pictures that do look alike, one for each record that is to go."""
    daft = import_daft()
    path = work / "verified.parquet"
    schema = pa.schema([("order", pa.int64()), ("original", pa.int64()), ("reason", pa.string())])
    with TableWriter(path, schema) as writer:
        if _num_rows(pairs):
            order, stored = daft.col("order"), daft.col("perceptual_hash")
            table = hashes.read("order", "perceptual_hash")
            originals = table.select(order.alias("original"), stored.alias("original_hash"))
            joined = daft.read_parquet(list(map(str, pairs))).join(table, on="order")
            joined = joined.join(originals, on="original").sort(["order", "original"])
            last = None
            for batch in _batches(joined.to_arrow_iter()):
                for row in _same_pictures(batch, max_difference):
                    if row != last and (last is None or row[0] != last[0]):
                        writer.add(*row, Reason.IMAGE_DUPLICATE.value)
                    last = row
    return path


def _same_pictures(batch: pa.RecordBatch, max_difference: float) -> Iterable[tuple[int, int]]:
    ours = perceptual_hash.from_bytes(batch["original_hash"].to_pylist())
    theirs = perceptual_hash.from_bytes(batch["perceptual_hash"].to_pylist())
    luma, chroma = perceptual_hash.differences(*ours, *theirs)
    same = (luma <= max_difference) & (chroma <= max_difference)
    orders, originals = batch["order"].to_pylist(), batch["original"].to_pylist()
    return [(orders[place], originals[place]) for place in np.flatnonzero(same)]


def _batches(tables: Iterable[Any]) -> Iterable[pa.RecordBatch]:
    for table in tables:
        batches = [table] if isinstance(table, pa.RecordBatch) else table.to_batches()
        for batch in batches:
            for start in range(0, batch.num_rows, _COMPARED_AT_ONCE):
                yield batch.slice(start, _COMPARED_AT_ONCE)


def _without(table: Any, dropped: _Table) -> Any:
    if not dropped.num_rows:
        return table
    return table.join(dropped.read("order"), on="order", how="anti")


def _passes(table: _Table) -> list[tuple[int, int]]:
    """Number of every pass over a table, and how many there are."""
    passes = max(1, -(-table.num_rows // ROWS_PER_PASS))
    return [(number, passes) for number in range(passes)]


def _num_rows(paths: Sequence[Path]) -> int:
    return sum(pq.read_metadata(path).num_rows for path in paths)


def _collect(frame: Any, path: Path) -> Path:
    """Writes the result of a query as one file, a part at a time."""
    file = path.with_suffix(".parquet")
    schema = frame.schema().to_pyarrow_schema()
    with pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(frame.to_arrow_iter()):
            writer.write_batch(batch.cast(schema))
    return file


def _write_by_partition(frame: Any, folder: Path) -> None:
    frame.write_parquet(str(folder), partition_cols=[import_daft().col("partition")])


def _read_partition(folder: Path, partition: int) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"*/partition={partition}/*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
