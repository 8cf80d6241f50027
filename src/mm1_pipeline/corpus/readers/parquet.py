"""What the Parquet readers share: rows that survive damage beside them, columns of any type.

A file is read row group by row group. Its footer says how many rows each holds, and as many come
out: as rows, or as rejected ones where a page is damaged. Columns that a format needs are told
from those that only end in the metadata: damage to the latter costs no row.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers.base import RawImage, RejectedRecord, Source, is_files_fault
from mm1_pipeline.corpus.readers.parquet_footer import RowGroup, read_row_groups
from mm1_pipeline.ground.rejects import Reason, Rejected

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 32
_BYTES_AT_ONCE = 64_000_000
"""Unpacked bytes that are held at once, where a row does not have more."""
_BUFFER_BYTES = 1 << 20
"""Read at once of a column; without it, a column's part of a row group, however large."""
_MAX_EXPANSION, _FREE_BYTES = 1_000, 64_000_000
"""Times its packed size that a row group may unpack to, and what is unpacked in any case. Columns
that repeat one value shrink a thousand times; bombs, 40,000 times."""
_ROWS_PER_BYTE, _FREE_ROWS = 100, 100_000
"""Rows, or values of a column, that a byte of a file may stand for, and that any file may have."""
_FOOTERS_AT_ONCE = 8
_LINES = re.compile(r"\.(tsv|csv|jsonl?)(\.\w+)?$", re.IGNORECASE)
_LISTED_FILES = 3
_LISTED_COLUMNS = 30

Row = dict[str, Any]


def read_rows(
    source: Source, file: SourceFile, needed: Collection[str]
) -> Iterator[tuple[str, Row] | RejectedRecord]:
    """Reads a file row by row, few in memory.

    Args:
        source: gives limits and the columns by role.
        file: one of the source's, local or on any fsspec URL.
        needed: columns without which there is no record. Of the others, values that Python
            cannot hold (dates beyond the year 9999, unknown time zones) are left out.

    Yields:
        Key of the row, made of file and row number, and the row; or why there is none. As many
        as the footer says.

    Raises:
        Rejected: the footer cannot be true.
    """
    number = 0
    unreadable: Counter[str] = Counter()
    with source.files.open(file) as stream:
        groups = read_row_groups(stream)
        with _open(stream, page_checksum_verification=True) as table:
            _check_sizes(groups, table.metadata.num_rows, file.size)
            for place, group in enumerate(groups):
                rows = _read_group(table, place, group, file.size, needed, unreadable)
                for row in itertools.islice(rows, group.num_rows):
                    key = f"{file.key}/{number:08d}"
                    yield RejectedRecord(key, row) if isinstance(row, Rejected) else (key, row)
                    number += 1
    for column, count in unreadable.items():
        logger.warning(
            "%s: left %d values of the column %r out of the metadata: they cannot be read.",
            file.name,
            count,
            column,
        )


def _open(stream: Any, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, **options)


def _check_sizes(groups: list[RowGroup], num_rows: int, num_bytes: int) -> None:
    """Refuses numbers of rows that cannot be true, before anything loops over them."""
    sizes = [group.num_rows for group in groups]
    allowed = _ROWS_PER_BYTE * num_bytes + _FREE_ROWS
    if any(size < 0 for size in sizes) or sum(sizes) > allowed:
        found = f"found a footer of {sum(sizes)} rows in {num_bytes} bytes"
        raise Rejected(Reason.UNREADABLE_FILE, f"{found}, expected 0 to {allowed}")
    if num_rows != sum(sizes):
        found = f"found a footer of {num_rows} rows, and {sum(sizes)} in its row groups"
        raise Rejected(Reason.UNREADABLE_FILE, found)


def _read_group(
    table: pq.ParquetFile,
    place: int,
    group: RowGroup,
    num_bytes: int,
    needed: Collection[str],
    unreadable: Counter[str],
) -> Iterator[Row | Rejected]:
    """The rows of a row group, at least as many as it should have.

    Where a page cannot be read, the needed columns are tried alone: what is damaged may only be
    metadata. What is lost then is lost from that row on, since no page says where the next starts.
    """
    names = list(dict.fromkeys(table.schema_arrow.names))
    others = [name for name in names if name not in needed]
    why: Rejected | None = None
    number = 0
    for left_out in ([], others):
        columns = [name for name in names if name not in left_out]
        try:
            for batch in _read_batches(table, place, group, columns, num_bytes, skipped=number):
                for row in _to_rows(batch, needed, unreadable):
                    number += 1
                    unreadable.update(left_out)
                    yield row
        except Rejected as error:
            why = error
        except (Exception, pa.ArrowMemoryError) as error:
            # Damaged sizes make Arrow ask for more memory than there is on earth.
            if not is_files_fault(error) and not isinstance(error, pa.ArrowMemoryError):
                raise
            why = Rejected(Reason.UNREADABLE_FILE, f"{type(error).__name__}: {error}")
        if number >= group.num_rows:
            return
    why = why or Rejected(Reason.UNREADABLE_FILE, "found fewer rows than the footer says")
    yield from itertools.repeat(why)


def _read_batches(
    table: pq.ParquetFile,
    place: int,
    group: RowGroup,
    columns: list[str],
    num_bytes: int,
    *,
    skipped: int,
) -> Iterator[pa.RecordBatch]:
    """Reads a row group a few rows at a time, and stops where it swells beyond all measure.

    Raises:
        Rejected: the group unpacks to far more than honest ones do.
    """
    chunks = [chunk for chunk in group.chunks if chunk.column in columns]
    packed = sum(max(0, chunk.packed) for chunk in chunks)
    unpacked = sum(max(0, chunk.unpacked) for chunk in chunks)
    allowed = _FREE_BYTES + _MAX_EXPANSION * min(packed, num_bytes)
    values = max((chunk.num_values for chunk in chunks), default=0)
    if unpacked > allowed or values > _ROWS_PER_BYTE * num_bytes + _FREE_ROWS:
        raise _compression_bomb(unpacked, packed, values)
    # One value may be as large as its whole column, and a dictionary repeats it in every row.
    at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, unpacked)))
    for batch in table.iter_batches(batch_size=at_once, row_groups=[place], columns=columns):
        batch = _without_dictionaries(batch)
        allowed -= batch.nbytes
        if allowed < 0:
            raise _compression_bomb(unpacked, packed, values)
        wanted = batch.slice(min(skipped, batch.num_rows))
        skipped -= batch.num_rows - wanted.num_rows
        if wanted.num_rows:
            yield wanted


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same values, each as large as it is."""
    packed = any(isinstance(column, pa.DictionaryArray) for column in batch.columns)
    if not packed:
        return batch
    plain = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(plain, names=batch.schema.names)


def _compression_bomb(unpacked: int, packed: int, values: int) -> Rejected:
    return Rejected(
        Reason.COMPRESSION_BOMB,
        f"found a row group of {packed} bytes that unpacks to {unpacked} bytes or far more, and "
        f"{values} values, expected at most {_MAX_EXPANSION} times as many bytes",
    )


def _to_rows(
    batch: pa.RecordBatch, needed: Collection[str], unreadable: Counter[str]
) -> Iterator[Row | Rejected]:
    names = batch.schema.names
    columns = {name: _to_values(batch.column(place)) for place, name in enumerate(names)}
    for place in range(batch.num_rows):
        row: Row = {}
        why: Rejected | None = None
        for name, values in columns.items():
            value = values[place]
            if not isinstance(value, Rejected):
                row[name] = value
            elif name in needed:
                why = why or value
            else:
                unreadable[name] += 1
        yield row if why is None else why


def _to_values(column: pa.Array) -> list[Any]:
    """The values of a column, with Rejected in the place of each that Python cannot hold."""
    try:
        return column.to_pylist()
    except Exception as error:
        if not is_files_fault(error):
            raise
    return [_to_value(scalar) for scalar in column]


def _to_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Rejected(Reason.INVALID_UTF8, str(error))
    except Exception as error:
        if not is_files_fault(error):
            raise
        return Rejected(Reason.MALFORMED_RECORD, f"{type(error).__name__}: {error}")


def misfits(
    problems: Callable[[Source, SourceFile, pa.Schema], list[str]], source: Source
) -> list[str]:
    """What in the parameters does not fit the columns of any file, all footers looked at.

    A damaged footer is no wrong parameter: reading puts the file into quarantine.

    Args:
        problems: what is wrong with one file.
        source: gives limits and the columns by role.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE, thread_name_prefix="footer") as pool:
        found = list(pool.map(partial(_file_problems, source, problems), source.files))
    wrong = [lines for lines in found if lines]
    listed = [line for lines in wrong[:_LISTED_FILES] for line in lines]
    if len(wrong) > _LISTED_FILES:
        listed.append(
            f"{source.parameter('path')}: found {len(wrong)} files of {len(found)} whose columns "
            "are not the expected ones; leave them out with `files`, or make a source of them."
        )
    return listed


def _file_problems(
    source: Source,
    problems: Callable[[Source, SourceFile, pa.Schema], list[str]],
    file: SourceFile,
) -> list[str]:
    if _LINES.search(file.name):
        return [
            f"{source.parameter('path')}: found {file.name}, lines of text, expected a Parquet "
            "file; a list of addresses is fetched first with the stage `download`."
        ]
    try:
        schema = read_schema(source, file)
    except Exception as error:
        if not is_files_fault(error):
            raise
        return []
    return problems(source, file, schema)


def read_schema(source: Source, file: SourceFile) -> pa.Schema:
    """The columns of a file."""
    with source.files.open_aside(file) as stream, _open(stream) as table:
        return table.schema_arrow


def describe_columns(schema: pa.Schema) -> str:
    """Names and types, for messages."""
    columns = [f"{field.name} ({field.type})" for field in schema]
    more = len(columns) - _LISTED_COLUMNS
    return ", ".join([*columns[:_LISTED_COLUMNS], *([f"{more} more"] if more > 0 else [])])


def column_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of the one column of a name; None where there is none, or more than one."""
    return plain_type(schema.field(name).type) if schema.names.count(name) == 1 else None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without how it is packed: the values of a dictionary, the storage of an extension."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif isinstance(kind, pa.DictionaryType | pa.RunEndEncodedType):
            kind = kind.value_type
        else:
            return kind


def item_type(kind: pa.DataType | None) -> pa.DataType | None:
    """The type of the items of a list of any kind; None for what is no list."""
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    if kind is None or not any(test(kind) for test in tests):
        return None
    return plain_type(kind.value_type)  # pyright: ignore[reportAttributeAccessIssue]


def is_text(kind: pa.DataType | None) -> bool:
    """Whether a column holds text."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return kind is not None and any(test(plain_type(kind)) for test in tests)


def is_image_type(kind: pa.DataType | None) -> bool:
    """Whether a column holds encoded images: bytes, or the struct of Hugging Face datasets."""
    if kind is None:
        return False
    plain = plain_type(kind)
    if pa.types.is_struct(plain):
        fields = [plain.field(place) for place in range(plain.num_fields)]
        return any(field.name == "bytes" and is_bytes(field.type) for field in fields)
    return is_bytes(plain)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes of any length, or lists of them as numbers."""
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    kind = plain_type(kind)
    return any(test(kind) for test in tests) or item_type(kind) == pa.uint8()


def to_image(value: Any, url: str | None = None) -> RawImage | None:
    """The image in a cell: bytes, numbers, a struct {bytes, path}, or None."""
    path = None
    if isinstance(value, dict):
        # The path is a file's name, often the same in every row, so it is no URL.
        path, value = value.get("path"), value.get("bytes")
    if value is not None:
        return RawImage.of(bytes(value), url)
    if path is None:
        return None
    found = f"found the path {path!r} and no bytes; embed the images in the table"
    return RawImage.refused(Rejected(Reason.IMAGE_MISSING, found), url)


def other_columns(row: Row, used: Collection[str]) -> dict[str, Any]:
    """What a row says besides text and image; bytes are left out."""
    return {
        name: value
        for name, value in row.items()
        if name not in used and value is not None and not _holds_bytes(value)
    }


def _holds_bytes(value: Any) -> bool:
    match value:
        case bytes():
            return True
        case dict():
            return any(map(_holds_bytes, value.values()))
        case list():
            return any(map(_holds_bytes, value))
        case _:
            return False
