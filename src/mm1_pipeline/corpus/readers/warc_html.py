"""Reads web archives: HTML pages, with the images that the same archives hold.

Unit of `read`: one HTML response, whatever its status; a response whose type cannot be told; a
damaged place of an archive. All other records are counted as passed over. An image is looked for
in all archives of the source, by its URL; one that was not archived is rejected as missing and its
page goes on. A revisit record stands for the page or image that it repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus import http
from mm1_pipeline.corpus.charsets import REPLACEMENT, decode_page
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.html import Image, extract_document
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    PassedOver,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    no_problems,
    read_guarded,
    read_one,
)
from mm1_pipeline.corpus.readers.warc_index import RESPONSES, REVISIT, ArchivedImages
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.corpus.warc import Archive, WarcRecord
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected


def read(source: Source) -> Iterator[Found]:
    """Reads all pages, archive by archive."""
    with closing(ArchivedImages(source)) as images:
        for file in source.files:
            yield from read_guarded(source, file, partial(_read_pages, images))


def _read_pages(images: ArchivedImages, source: Source, file: SourceFile) -> Iterator[Found]:
    number = 0
    max_bytes = source.limits.max_page_bytes + http.MAX_HEADER_BYTES
    with source.files.open(file) as stream:
        for record in Archive(stream).records(max_bytes):
            if isinstance(record, Rejected):
                yield RejectedRecord(file.name, record)
                continue
            if record.kind not in (*RESPONSES, REVISIT):
                yield PassedOver(Passed.OTHER_WARC_RECORD)
                continue
            key = f"{file.key}/{number:06d}"
            found = read_one(key, partial(_read_response, images, source, key, record))
            number += not isinstance(found, PassedOver)
            yield found


def _read_response(
    images: ArchivedImages, source: Source, key: str, record: WarcRecord
) -> Item | PassedOver:
    max_bytes = source.limits.max_page_bytes
    try:
        response = http.parse_response(record)
        if record.kind == REVISIT:
            original = images.original_of(record)
            if original is None and response.media_type not in ("", *http.PAGE_TYPES):
                return PassedOver(Passed.ARCHIVED_FILE)
            if original is None:
                raise Rejected(
                    Reason.ORIGINAL_MISSING,
                    "found a revisit record of a page that no archive of the source holds",
                )
            if response.is_good or response.is_unchanged:
                response = http.parse_response(original)
        if not http.is_page(response, max_bytes):
            return PassedOver(Passed.ARCHIVED_FILE)
        return _read_page(images, key, record.url, response, max_bytes)
    except Rejected as error:
        detail = f"{record.url}: {error.detail}" if error.detail else record.url
        return RejectedRecord(key, Rejected(error.reason, detail))


def _read_page(
    images: ArchivedImages, key: str, url: str, response: http.Response, max_bytes: int
) -> RawRecord:
    if not response.is_good:
        raise Rejected(Reason.HTTP_STATUS, f"found status {response.status}, expected 200")
    body = http.read_body(response, max_bytes)
    document = extract_document(decode_page(body, response.charset), url)
    segments: list[Segment] = []
    found: dict[tuple[str, ...], int] = {}
    for part in document.parts:
        if isinstance(part, Image):
            segments.append(Segment.of_image(found.setdefault(part.urls, len(found))))
        elif REPLACEMENT in part.text:
            raise Rejected(
                Reason.INVALID_UTF8,
                "found U+FFFD in the text: bytes that the page's encoding lacks, or that an "
                "earlier conversion lost",
            )
        else:
            segments.append(Segment.of_text(part.text))
    raw_images = tuple(images.find(urls) for urls in found)
    metadata = {"url": url, "title": document.title}
    return RawRecord(key, tuple(segments), raw_images, metadata=metadata)


READERS = {SourceFormat.WARC_HTML: Reader(read, no_problems)}
