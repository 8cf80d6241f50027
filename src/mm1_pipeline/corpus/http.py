"""Archived HTTP responses: their type, their status, their unpacked bodies."""

from __future__ import annotations

import re
import zlib
from typing import Any

from fastwarc.warc import WarcRecord

from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.quarantine import Reason, Rejected

OK = 200
PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
"""Media types of pages."""

_META_CHARSET = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_CHUNK_SIZE = re.compile(rb"(?:\r?\n)?([0-9a-fA-F]{1,8})[^\r\n]*\r?\n")
_LOOKED_AT_FOR_CHARSET = 2_048
_LATIN = "windows-1252"


def status(record: WarcRecord) -> int:
    """The status code; a record without HTTP headers counts as a success."""
    headers = record.http_headers
    return OK if headers is None or headers.status_code is None else headers.status_code


def content_type(record: WarcRecord) -> str:
    """The media type without its parameters, in lower case."""
    found = record.http_content_type if record.is_http else record.headers.get("Content-Type", "")
    return (found or "").split(";", 1)[0].strip().lower()


def target_url(record: WarcRecord) -> str:
    """The address that was asked for."""
    return (record.headers.get("WARC-Target-URI") or "").strip("<>")


def header(record: WarcRecord, name: str) -> str:
    """An HTTP header, or nothing."""
    return "" if record.http_headers is None else record.http_headers.get(name, "") or ""


def read_body(record: WarcRecord, max_bytes: int) -> bytes:
    """The body as a browser gets it, of which no more than allowed is ever unpacked.

    Raises:
        Rejected: it is too large, cannot be unpacked, or the archive ends inside of it.
    """
    declared = record.content_length
    if declared > max_bytes:
        raise Rejected(Reason.PAGE_TOO_LARGE, f"found {declared} bytes, allowed {max_bytes}")
    before = record.reader.tell()
    body = record.reader.read(max_bytes + 1)
    if len(body) < declared - before:
        raise Rejected(Reason.TRUNCATED_FILE, "found an archive that ends inside of a record")
    if "chunked" in header(record, "Transfer-Encoding").lower():
        body = _join_chunks(body)
    for encoding in reversed(header(record, "Content-Encoding").lower().split(",")):
        body = _unpack(body, encoding.strip(), max_bytes)
    return body


def _join_chunks(body: bytes) -> bytes:
    """Undoes chunked transfer; a body that is not chunked was joined when it was archived."""
    pieces, position = [], 0
    while match := _CHUNK_SIZE.match(body, position):
        size = int(match[1], 16)
        if not size:
            break
        pieces.append(body[match.end() : match.end() + size])
        position = match.end() + size
    return b"".join(pieces) or body


def _unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    try:
        match encoding:
            case "" | "identity":
                return body
            case "gzip" | "x-gzip" if body[:2] != b"\x1f\x8b":
                return body  # unpacked when it was archived, with the header left in place
            case "gzip" | "x-gzip":
                return decompression.unpack_limited(body, decompression.gzip_frame, max_bytes)
            case "deflate":
                return _inflate(body, max_bytes)
            case "zstd":
                return decompression.unpack_limited(body, decompression.zstd_frame, max_bytes)
    except decompression.ERRORS as error:
        raise Rejected(Reason.HTTP_ENCODING, f"{encoding}: {error}") from None
    raise Rejected(
        Reason.HTTP_ENCODING, f"found Content-Encoding {encoding!r}, expected gzip, deflate or zstd"
    )


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """Deflate comes with the header of zlib, or, from some servers, without."""
    try:
        return decompression.unpack_limited(body, decompression.gzip_frame, max_bytes)
    except zlib.error:
        return decompression.unpack_limited(body, decompression.deflate_frame, max_bytes)


def decode_text(body: bytes, charset: str | None) -> str:
    """Decodes a page: byte order mark, then HTTP header, then its own word, then UTF-8.

    Bytes that the encoding lacks become U+FFFD, as in a browser. A page that declares nothing
    and is no UTF-8 is read as Windows-1252, the web's old default.

    Args:
        body: the unpacked page.
        charset: from the HTTP header.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return body.decode(encoding, "replace")
    declared = _META_CHARSET.search(body[:_LOOKED_AT_FOR_CHARSET])
    for name in (charset, declared[1].decode("ascii", "replace") if declared else None):
        decoded = _decode_as(body, name) if name else None
        if decoded is not None:
            return decoded
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body.decode(_LATIN, "replace")


def _decode_as(body: bytes, charset: str) -> str | None:
    """The text in a declared encoding, or None when there is no such text encoding."""
    name = charset.strip().lower()
    if name in ("iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii"):
        name = _LATIN  # what browsers understand by these names
    try:
        decoded: Any = body.decode(name, "replace")
    except (LookupError, ValueError):
        return None
    return decoded if isinstance(decoded, str) else None
