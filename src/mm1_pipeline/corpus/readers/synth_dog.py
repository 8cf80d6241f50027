"""Reads SynthDog tables: Parquet rows of an image and the text that is written in it.

`ground_truth` is JSON, `{"gt_parse": {"text_sequence": "..."}}`. Unit of `read`: one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mm1_pipeline.annotations import json_files
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers import parquet
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    Reader,
    RejectedRecord,
    Source,
    SourceParameterError,
    caption_record,
    read_each_file,
    read_one,
)
from mm1_pipeline.ground.rejects import Reason, Rejected

_TEXT_COLUMN = "ground_truth"


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    if found := problems(source, file, parquet.read_schema(source, file)):
        raise SourceParameterError("\n".join(found))
    needed = (source.config.image_column, _TEXT_COLUMN)
    for item in parquet.read_rows(source, file, needed):
        if isinstance(item, RejectedRecord):
            yield item
        else:
            yield read_one(item[0], partial(_to_record, source, *item))


def _to_record(source: Source, key: str, row: parquet.Row) -> Item:
    image_column = source.config.image_column
    text = _written_text(row[_TEXT_COLUMN])
    metadata = parquet.other_columns(row, (image_column, _TEXT_COLUMN))
    return caption_record(source, key, parquet.to_image(row[image_column]), text, metadata)


def problems(source: Source, file: SourceFile, schema: pa.Schema) -> list[str]:
    """What in the parameters or in a table does not fit the format."""
    found = []
    if not parquet.is_image_type(parquet.column_type(schema, source.config.image_column)):
        found.append(("image_column", source.config.image_column, "encoded images"))
    if not parquet.is_text(parquet.column_type(schema, _TEXT_COLUMN)):
        found.append(("path", _TEXT_COLUMN, "text"))
    return [
        f"{source.parameter(parameter)}: found no such column {column!r}, expected one column of "
        f"{content}; {file.name} has {parquet.describe_columns(schema)}."
        for parameter, column, content in found
    ]


def _written_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Rejected(Reason.TEXT_MISSING, f"found no text in the column {_TEXT_COLUMN!r}")
    content = json_files.parse(value.encode("utf-8", "replace"))
    if isinstance(content, Rejected):
        raise content
    parsed = content.get("gt_parse") if isinstance(content, dict) else None
    text = parsed.get("text_sequence") if isinstance(parsed, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Rejected(Reason.TEXT_MISSING, "found no gt_parse.text_sequence")
    return text


READERS = {SourceFormat.SYNTH_DOG: Reader(read, partial(parquet.misfits, problems))}
