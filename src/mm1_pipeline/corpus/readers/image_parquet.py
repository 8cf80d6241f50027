"""Reads Parquet tables of encoded images with a caption each. Unit of `read`: one row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa

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

_ADDRESSES = frozenset({"url", "image_url", "urls"})


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    if found := problems(source, file, parquet.read_schema(source, file)):
        raise SourceParameterError("\n".join(found))
    needed = (source.config.image_column, source.config.text_column)
    for item in parquet.read_rows(source, file, needed):
        if isinstance(item, RejectedRecord):
            yield item
        else:
            yield read_one(item[0], partial(_to_record, source, *item))


def _to_record(source: Source, key: str, row: parquet.Row) -> Item:
    image_column, text_column = source.config.image_column, source.config.text_column
    url = row.get("url")
    image = parquet.to_image(row[image_column], url if isinstance(url, str) else None)
    metadata = parquet.other_columns(row, (image_column, text_column))
    return caption_record(source, key, image, row[text_column], metadata)


def problems(source: Source, file: SourceFile, schema: pa.Schema) -> list[str]:
    """What in the parameters does not fit the columns of a table."""
    found = []
    checks = (
        ("image_column", source.config.image_column, parquet.is_image_type, "encoded images"),
        ("text_column", source.config.text_column, parquet.is_text, "text"),
    )
    for parameter, column, fits, content in checks:
        if not fits(parquet.column_type(schema, column)):
            found.append(
                f"{source.parameter(parameter)}: found {column!r}, expected one column of "
                f"{content}; {file.name} has {parquet.describe_columns(schema)}."
            )
    if found and any(name.lower() in _ADDRESSES for name in schema.names):
        found[-1] += " Images that a table only names are fetched first, by the stage `download`."
    return found


READERS = {SourceFormat.IMAGE_PARQUET: Reader(read, partial(parquet.misfits, problems))}
