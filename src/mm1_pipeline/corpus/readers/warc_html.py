"""Reads web archives: HTML pages, with the images that the same archives hold.

Unit of `read`: one HTML response, whatever its status. An image is looked for in all archives of
the source, by its URL; one that was not archived is rejected as missing and its page goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from mm1_pipeline.corpus import decompression, http
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.html import Image, extract_document
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RawRecord,
    RejectedRecord,
    Source,
    read_guarded,
)
from mm1_pipeline.corpus.readers.warc_index import ArchivedImages
from mm1_pipeline.corpus.records import Segment

_RECORD_TYPES = (WarcRecordType.response, WarcRecordType.resource)
_MAX_HEADER_BYTES = 100_000
_REPLACEMENT = "\ufffd"


def read(source: Source) -> Iterator[Found]:
    """Reads all pages, archive by archive."""
    with closing(ArchivedImages(source)) as images:
        for file in source.files:
            yield from read_guarded(source, file, partial(_read_pages, images))


def _read_pages(images: ArchivedImages, source: Source, file: SourceFile) -> Iterator[Item]:
    number, position = 0, 0
    with source.files.open(file) as stream:
        for record in ArchiveIterator(stream, parse_http=True):
            position = record.stream_pos
            is_response = record.record_type in _RECORD_TYPES
            if not is_response or http.content_type(record) not in http.PAGE_TYPES:
                continue
            key = f"{file.key}/{number:06d}"
            number += 1
            url = http.target_url(record)
            try:
                yield _read_page(images, source, key, url, record)
            except Rejected as error:
                if error.reason == Reason.TRUNCATED_FILE:
                    raise  # the archive ends here: its rejection, not another one of the page
                yield RejectedRecord(key, _with_url(error, url))
    _check_end(source, file, position)


def _read_page(
    images: ArchivedImages, source: Source, key: str, url: str, record: WarcRecord
) -> RawRecord:
    status = http.status(record)
    if status != http.OK:
        raise Rejected(Reason.HTTP_STATUS, f"found status {status}, expected {http.OK}")
    body = http.read_body(record, source.limits.max_page_bytes)
    document = extract_document(http.decode_text(body, record.http_charset), url)
    segments: list[Segment] = []
    found: dict[tuple[str, ...], int] = {}
    for part in document.parts:
        if isinstance(part, Image):
            segments.append(Segment.of_image(found.setdefault(part.urls, len(found))))
        elif _REPLACEMENT in part.text:
            raise Rejected(Reason.INVALID_UTF8, "found bytes that the page's encoding lacks")
        else:
            segments.append(Segment.of_text(part.text))
    raw_images = tuple(images.find(urls) for urls in found)
    metadata = {"url": url, "title": document.title}
    return RawRecord(key, tuple(segments), raw_images, metadata=metadata)


def _with_url(error: Rejected, url: str) -> Rejected:
    return Rejected(error.reason, f"{url}: {error.detail}" if error.detail else url)


def _check_end(source: Source, file: SourceFile, position: int) -> None:
    """Makes sure that an archive is whole from its last record on.

    The iterator takes the end of the file for the end of the archive, wherever it comes.

    Args:
        source: the source.
        file: the archive.
        position: where its last record starts.

    Raises:
        Rejected: the file ends in the middle, or is no archive.
    """
    head, length = b"", 0
    with source.files.open_aside(file) as stream:
        stream.seek(position)
        try:
            for chunk in decompression.read_chunks(stream, file.name.lower()):
                head += chunk if len(head) < _MAX_HEADER_BYTES else b""
                length += len(chunk)
        except decompression.ERRORS as error:
            found = f"byte {position}: {error}. Records must be packed one by one, as WARC asks"
            raise Rejected(Reason.UNREADABLE_FILE, found) from None
    header, separator, _ = head.partition(b"\r\n\r\n")
    if not header.startswith(b"WARC/"):
        found = f"found {head[:8].hex(' ')} at byte {position}, expected a record"
        raise Rejected(Reason.UNREADABLE_FILE, found)
    declared = re.search(rb"^Content-Length:\s*(\d+)", header, re.IGNORECASE | re.MULTILINE)
    content = length - len(header) - len(separator)
    if not separator or declared is None or content < int(declared[1]):
        raise Rejected(Reason.TRUNCATED_FILE, "found an archive that ends inside of a record")
