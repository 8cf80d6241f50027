"""Reads interleaved documents in the layout of OBELICS. Unit of `read`: one row.

Columns `images` and `texts` are lists of one length; at each place one of the two is null.
`images` holds encoded images, as bytes or as structs {bytes, path}. A column `metadata` may hold
a JSON list of the same length whose objects name the images' URLs (`src`), as OBELICS does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers import parquet
from mm1_pipeline.corpus.readers.base import (
    Item,
    RawImage,
    RawRecord,
    RejectedRecord,
    Source,
    read_each_file,
)
from mm1_pipeline.corpus.records import Segment

IMAGES, TEXTS, METADATA = "images", "texts", "metadata"


def read(source: Source) -> Iterator[Item]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    found = problems(source, file)
    if found:
        raise ValueError("\n".join(found))
    for item in parquet.read_rows(source, file):
        if isinstance(item, RejectedRecord):
            yield item
            continue
        key, row = item
        try:
            yield _to_record(key, row)
        except Rejected as error:
            yield RejectedRecord(key, error)


def problems(source: Source, file: SourceFile) -> list[str]:
    """What keeps a table from being read as interleaved documents."""
    schema = parquet.read_schema(source, file)
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    start = f"{source.parameter('path')}: found the columns {columns} in {file.name}, expected"
    found = []
    if not _is_list_of(schema, TEXTS, pa.types.is_string, pa.types.is_large_string):
        found.append(f"{start} {TEXTS}, lists of text.")
    if _is_list_of(schema, IMAGES, pa.types.is_string, pa.types.is_large_string):
        found.append(
            f"{start} {IMAGES}, lists of encoded images, not of URLs: download the images and "
            "embed their bytes first."
        )
    elif not _is_list_of(schema, IMAGES, parquet.is_image_type):
        found.append(f"{start} {IMAGES}, lists of encoded images.")
    return found


def _is_list_of(schema: pa.Schema, column: str, *fits: Any) -> bool:
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and any(fit(kind.value_type) for fit in fits)


def _to_record(key: str, row: dict[str, Any]) -> RawRecord:
    texts, images = row[TEXTS], row[IMAGES]
    if texts is None or images is None or len(texts) != len(images):
        lengths = [None if values is None else len(values) for values in (texts, images)]
        raise Rejected(
            Reason.MALFORMED_RECORD, f"found texts and images of lengths {lengths}, expected equal"
        )
    urls = _image_urls(row.get(METADATA), len(images))
    segments: list[Segment] = []
    found: list[RawImage] = []
    for place, (text, value) in enumerate(zip(texts, images, strict=True)):
        image = parquet.to_image(value, urls[place])
        if text is not None and image is not None:
            raise Rejected(Reason.MALFORMED_RECORD, f"found text and image at place {place}")
        if image is not None:
            segments.append(Segment.of_image(len(found)))
            found.append(image)
        elif text is not None:
            segments.append(Segment.of_text(text))
    metadata = parquet.other_columns(row, (TEXTS, IMAGES))
    return RawRecord(key, tuple(segments), tuple(found), (), metadata)


def _image_urls(metadata: Any, length: int) -> list[str | None]:
    """URLs of the images where OBELICS' metadata names them."""
    nothing: list[str | None] = [None] * length
    if not isinstance(metadata, str):
        return nothing
    try:
        entries = json.loads(metadata)
    except (ValueError, RecursionError):
        return nothing
    if not isinstance(entries, list) or len(entries) != length:
        return nothing
    urls = [entry.get("src") if isinstance(entry, dict) else None for entry in entries]
    return [url if isinstance(url, str) else None for url in urls]
