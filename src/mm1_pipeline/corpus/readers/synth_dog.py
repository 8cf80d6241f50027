"""Reads SynthDog tables: Parquet rows of an image and the text that is written in it.

`ground_truth` is JSON, `{"gt_parse": {"text_sequence": "..."}}`. Unit of `read`: one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mm1_pipeline.corpus import json_streams
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers import parquet
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RejectedRecord,
    Source,
    caption_record,
    read_each_file,
)

_TEXT_COLUMN = "ground_truth"


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    image_column = source.config.image_column
    for item in parquet.read_rows(source, file):
        if isinstance(item, RejectedRecord):
            yield item
            continue
        key, row = item
        try:
            text = _written_text(row.get(_TEXT_COLUMN))
        except Rejected as error:
            yield RejectedRecord(key, error)
            continue
        image = parquet.to_image(row.get(image_column))
        metadata = parquet.other_columns(row, (image_column, _TEXT_COLUMN))
        yield caption_record(source, key, image, text, metadata)


def _written_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Rejected(Reason.TEXT_MISSING, f"found no text in the column {_TEXT_COLUMN!r}")
    content = json_streams.parse(value.encode("utf-8", "replace"))
    if isinstance(content, Rejected):
        raise content
    parsed = content.get("gt_parse") if isinstance(content, dict) else None
    text = parsed.get("text_sequence") if isinstance(parsed, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Rejected(Reason.TEXT_MISSING, "found no gt_parse.text_sequence")
    return text
