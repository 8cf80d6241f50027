"""What the two Parquet readers share: columns that must be there, images in either form."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.base import RawImage, RejectedRecord, Source

_ROWS_AT_ONCE = 32
_BUFFER_BYTES = 1 << 20
"""Read at once of a column; without it, a column's part of a row group, however large."""


def read_rows(
    source: Source, file: SourceFile
) -> Iterator[tuple[str, dict[str, Any]] | RejectedRecord]:
    """Reads a file row by row, few in memory.

    Yields:
        Key of the row, made of file and row number, and the row; or a row that is no text.
    """
    number = 0
    with (
        source.files.open(file) as stream,
        pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in _to_rows(batch):
                key = f"{file.key}/{number:08d}"
                yield RejectedRecord(key, row) if isinstance(row, Rejected) else (key, row)
                number += 1


def _to_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Rejected]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for start in range(batch.num_rows):
            try:
                yield batch.slice(start, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Rejected(Reason.INVALID_UTF8, str(error))


def read_schema(source: Source, file: SourceFile) -> pa.Schema:
    """The columns of a file."""
    with source.files.open_aside(file) as stream, pq.ParquetFile(stream) as parquet:
        return parquet.schema_arrow


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column holds encoded images: bytes, or the struct of Hugging Face datasets."""
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return "bytes" in names and is_bytes(kind.field("bytes").type)
    return is_bytes(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes of any length."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def to_image(value: Any, url: str | None = None) -> RawImage | None:
    """The image in a cell: bytes, a struct {bytes, path}, or None."""
    path = None
    if isinstance(value, dict):
        # The path is a file's name, often the same in every row, so it is no URL.
        path, value = value.get("path"), value.get("bytes")
    if value is not None:
        return RawImage.of(value, url)
    if path is None:
        return None
    found = f"found the path {path!r} and no bytes; embed the images in the table"
    return RawImage.refused(Rejected(Reason.IMAGE_MISSING, found), url)


def other_columns(row: dict[str, Any], used: Collection[str]) -> dict[str, Any]:
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
