"""Reads text, one JSON object a line, plain or packed with gzip or zstd.

Unit of `read`: one line that is not blank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus import decompression, json_streams
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    is_files_fault,
    read_each_file,
)
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.ground.rejects import Reason, Rejected

_LINES_LOOKED_AT = 10


def read(source: Source) -> Iterator[Found]:
    """Reads all files."""
    return read_each_file(source, _read_file)


def _read_file(source: Source, file: SourceFile) -> Iterator[Item]:
    with source.files.open(file) as stream:
        chunks = decompression.read_chunks(stream, file.name.lower())
        for number, value in json_streams.iterate_lines(chunks, source.limits.max_line_bytes):
            yield _to_item(source, f"{file.key}/{number:08d}", value)


def _to_item(source: Source, key: str, value: Any | Rejected) -> Item:
    if isinstance(value, Rejected):
        return RejectedRecord(key, value)
    if not isinstance(value, dict):
        found = f"found {type(value).__name__}, expected an object"
        return RejectedRecord(key, Rejected(Reason.MALFORMED_RECORD, found))
    column = source.config.text_column
    text = value.pop(column, None)
    if not isinstance(text, str):
        found = f"found no text in the field {column!r}"
        return RejectedRecord(key, Rejected(Reason.TEXT_MISSING, found))
    return RawRecord(key, (Segment.of_text(text),), metadata=value)


def problems(source: Source) -> list[str]:
    """Whether none of the first file's first lines has the configured field: a misspelt one."""
    file = next(iter(source.files))
    found: set[str] = set()
    try:
        with source.files.open_aside(file) as stream:
            chunks = decompression.read_chunks(stream, file.name.lower())
            lines = json_streams.iterate_lines(chunks, source.limits.max_line_bytes)
            for _, value in itertools.islice(lines, _LINES_LOOKED_AT):
                found.update(value if isinstance(value, dict) else ())
    except Exception as error:
        if not is_files_fault(error):
            raise
        return []  # damage is found, and counted, by reading
    column = source.config.text_column
    if not found or column in found:
        return []
    return [
        f"{source.parameter('text_column')}: found {column!r}, expected a field of the objects in "
        f"{file.name}: {', '.join(sorted(found))}."
    ]


READERS = {SourceFormat.JSONL: Reader(read, problems)}
