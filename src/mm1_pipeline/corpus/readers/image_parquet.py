"""Reads Parquet tables of encoded images with a caption each. Unit of `read`: one row."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers import parquet
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    ParameterError,
    RejectedRecord,
    Source,
    caption_record,
    read_each_file,
)


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    if found := problems(source, file):
        raise ParameterError("\n".join(found))
    image_column, text_column = source.config.image_column, source.config.text_column
    for item in parquet.read_rows(source, file):
        if isinstance(item, RejectedRecord):
            yield item
            continue
        key, row = item
        url = row.get("url")
        image = parquet.to_image(row[image_column], url if isinstance(url, str) else None)
        metadata = parquet.other_columns(row, (image_column, text_column))
        yield caption_record(source, key, image, row[text_column], metadata)


def problems(source: Source, file: SourceFile) -> list[str]:
    """What in the parameters does not fit the columns of a table."""
    schema = parquet.read_schema(source, file)
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    found = []
    checks = (
        ("image_column", source.config.image_column, parquet.is_image_type, "encoded images"),
        ("text_column", source.config.text_column, _is_text, "text"),
    )
    for parameter, column, fits, content in checks:
        if column not in schema.names or not fits(schema.field(column).type):
            found.append(
                f"{source.parameter(parameter)}: found {column!r}, expected a column of {content}; "
                f"{file.name} has {columns}."
            )
    return found


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
