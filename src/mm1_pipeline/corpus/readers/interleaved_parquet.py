"""Reads interleaved documents as OBELICS, MMC4 and OmniCorpus lay them out, with their images.

Unit of `read`: one row. Two layouts are told apart by their columns.

`texts` and `images` (OBELICS, OmniCorpus): lists of one length; at each place one of the two is
null. `images` holds encoded images, as bytes or as structs {bytes, path}. A column `image_urls`
may hold their URLs, a list of the same length, or a column `metadata` such a list, or its JSON,
whose objects name them (`src`). A place with neither text nor image is passed over: the stage
`download` leaves it where an image failed, and counts it.

`text_list` and `image_info` (MMC4): sentences, and structs {matched_text_index, bytes or image,
raw_url}. An image stands before the sentence that it was matched to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers import parquet
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RawImage,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    SourceParameterError,
    read_each_file,
    read_one,
)
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.ground.rejects import Reason, Rejected

IMAGES, TEXTS, METADATA, URLS = "images", "texts", "metadata", "image_urls"
SENTENCES, IMAGE_INFO = "text_list", "image_info"
PLACE, URL = "matched_text_index", "raw_url"
CONTENTS = ("bytes", "image")
_FETCH = "fetch them first with the stage `download` and download.kind: interleaved"


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    return read_each_file(source, _read_table)


def _read_table(source: Source, file: SourceFile) -> Iterator[Item]:
    schema = parquet.read_schema(source, file)
    if found := problems(source, file, schema):
        raise SourceParameterError("\n".join(found))
    to_record, needed = _parallel, (TEXTS, IMAGES)
    if _is_mmc4(schema):
        to_record, needed = _matched, (SENTENCES, IMAGE_INFO)
    for item in parquet.read_rows(source, file, needed):
        if isinstance(item, RejectedRecord):
            yield item
        else:
            yield read_one(item[0], partial(to_record, *item))


def problems(source: Source, file: SourceFile, schema: pa.Schema) -> list[str]:
    """What keeps a table from being read as interleaved documents."""
    columns = parquet.describe_columns(schema)
    start = f"{source.parameter('path')}: found the columns {columns} in {file.name}, expected"
    if _is_mmc4(schema):
        return _mmc4_problems(schema, start)
    found = []
    images = parquet.item_type(parquet.column_type(schema, IMAGES))
    if not parquet.is_text(parquet.item_type(parquet.column_type(schema, TEXTS))):
        found.append(f"{start} {TEXTS}, lists of text.")
    if parquet.is_text(images):
        found.append(f"{start} {IMAGES}, lists of encoded images, not of URLs: {_FETCH}.")
    elif not parquet.is_image_type(images):
        found.append(f"{start} {IMAGES}, lists of encoded images.")
    return found


def _is_mmc4(schema: pa.Schema) -> bool:
    return SENTENCES in schema.names and IMAGE_INFO in schema.names


def _mmc4_problems(schema: pa.Schema, start: str) -> list[str]:
    found = []
    if not parquet.is_text(parquet.item_type(parquet.column_type(schema, SENTENCES))):
        found.append(f"{start} {SENTENCES}, lists of text.")
    if not _is_image_info(parquet.item_type(parquet.column_type(schema, IMAGE_INFO))):
        found.append(
            f"{start} {IMAGE_INFO}, lists of structs with {PLACE} and the encoded image in "
            f"{' or '.join(CONTENTS)}: {_FETCH}."
        )
    return found


def _is_image_info(kind: pa.DataType | None) -> bool:
    if kind is None or not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    has_image = any(parquet.is_image_type(types.get(name)) for name in CONTENTS)
    return has_image and PLACE in types and pa.types.is_integer(parquet.plain_type(types[PLACE]))


def _parallel(key: str, row: dict[str, Any]) -> RawRecord:
    """A row of `texts` and `images`."""
    texts, images = row[TEXTS], row[IMAGES]
    if texts is None or images is None or len(texts) != len(images):
        lengths = [None if values is None else len(values) for values in (texts, images)]
        raise Rejected(
            Reason.MALFORMED_RECORD, f"found texts and images of lengths {lengths}, expected equal"
        )
    urls = _image_urls(row, len(images))
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
    metadata = parquet.other_columns(row, (TEXTS, IMAGES, URLS))
    return RawRecord(key, tuple(segments), tuple(found), (), metadata)


def _matched(key: str, row: dict[str, Any]) -> RawRecord:
    """A row of `text_list` and `image_info`."""
    sentences, infos = row[SENTENCES], row[IMAGE_INFO] or []
    if sentences is None or any(sentence is None for sentence in sentences):
        raise Rejected(Reason.MALFORMED_RECORD, f"found no text, or gaps, in {SENTENCES}")
    before: dict[int, list[RawImage]] = {}
    for info in infos:
        place = (info or {}).get(PLACE)
        if info is None or place is None or not 0 <= place < len(sentences):
            found = f"found {PLACE} {place}, expected 0 to {len(sentences) - 1}"
            raise Rejected(Reason.MALFORMED_RECORD, found)
        value = next((info[name] for name in CONTENTS if info.get(name) is not None), None)
        url = info.get(URL)
        image = parquet.to_image(value, url if isinstance(url, str) else None)
        if image is None:
            missing = Rejected(Reason.IMAGE_MISSING, "found no bytes of the image")
            image = RawImage.refused(missing, url if isinstance(url, str) else None)
        before.setdefault(place, []).append(image)
    segments: list[Segment] = []
    images: list[RawImage] = []
    for place, sentence in enumerate(sentences):
        for image in before.get(place, []):
            segments.append(Segment.of_image(len(images)))
            images.append(image)
        # Sentences of one paragraph go on in the same line.
        goes_on = bool(segments) and segments[-1].text is not None
        segments.append(Segment.of_text(f" {sentence}" if goes_on else sentence))
    metadata = parquet.other_columns(row, (SENTENCES, IMAGE_INFO))
    return RawRecord(key, tuple(segments), tuple(images), (), metadata)


def _image_urls(row: dict[str, Any], length: int) -> list[str | None]:
    """URLs of the images, from their column or the metadata of OBELICS or OmniCorpus."""
    nothing: list[str | None] = [None] * length
    listed = row.get(URLS)
    if isinstance(listed, list) and len(listed) == length:
        return [url if isinstance(url, str) else None for url in listed]
    entries = row.get(METADATA)
    if isinstance(entries, str):
        try:
            entries = json.loads(entries)
        except (ValueError, RecursionError):
            return nothing
    if not isinstance(entries, list) or len(entries) != length:
        return nothing
    urls = [entry.get("src") if isinstance(entry, dict) else None for entry in entries]
    return [url if isinstance(url, str) else None for url in urls]


READERS = {SourceFormat.INTERLEAVED_PARQUET: Reader(read, partial(parquet.misfits, problems))}
