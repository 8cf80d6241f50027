"""Archived HTTP responses: their type, their status, their unpacked bodies."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.warc import Headers, WarcRecord, read_headers
from mm1_pipeline.ground.rejects import Reason, Rejected

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
"""Media types of pages."""
MAX_HEADER_BYTES = 1_000_000
"""Length above which the headers of a response are refused. Our choice."""

_UNKNOWN_TYPES = frozenset({"", "unknown/unknown", "application/unknown", "*/*"})
_GOOD = frozenset({200, 203})
_PART = 206
_REDIRECTS = range(300, 400)
_NOT_MODIFIED = 304
_STATUS_LINE = re.compile(rb"[^\s/]{1,20}(?:/[0-9.]{1,8})?[ \t]+([1-9][0-9]{2})(?![0-9])")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n|$")
_MEDIA_TYPE = re.compile(r"[\w.+*!#$&^-]{1,127}/[\w.+*!#$&^-]{1,127}", re.ASCII)
_CHARSET = re.compile(r"""[;\s,]charset\s*=\s*["']?([^"';,\s]+)""", re.IGNORECASE)
_WHOLE_RANGE = re.compile(r"bytes\s+0-(\d{1,15})/(\d{1,15})", re.IGNORECASE | re.ASCII)
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")
_NEWLINE = re.compile(rb"\r?\n")
_PAGE_START = re.compile(
    rb"(?:\xef\xbb\xbf)?[\t\n\f\r ]*+<(?:!--|(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT"
    rb"|TABLE|A|STYLE|TITLE|B|BODY|BR|P)[ >])",
    re.IGNORECASE,
)
"""What makes a page of a response without a type, in browsers; a byte order mark is our choice."""
_IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM|II\*\0|MM\0\*|\0\0\0.ftyp", re.DOTALL
)
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SEEN = 1_000
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered, or what an archive holds of a file without a server.

    Attributes:
        status: 200 for what has no status.
        headers: in lower case.
        body: as it was archived, of which long ones are cut.
        size: of the whole body in bytes.
    """

    status: int
    headers: Headers
    body: bytes
    size: int

    def header(self, name: str) -> str:
        """All values of a header, joined by commas; `name` in lower case."""
        return ", ".join(self.headers.get(name, ()))

    @property
    def media_type(self) -> str:
        """The type without its parameters, in lower case; empty where none can be read."""
        return _content_type(self)[0]

    @property
    def charset(self) -> str | None:
        """The label in the header."""
        return _content_type(self)[1]

    @property
    def is_good(self) -> bool:
        """Whether the body is what was asked for, and all of it."""
        if self.status != _PART:
            return self.status in _GOOD
        found = _WHOLE_RANGE.fullmatch(self.header("content-range").strip())
        return found is not None and int(found[1]) + 1 == int(found[2])

    @property
    def is_redirect(self) -> bool:
        """Whether it only leads elsewhere."""
        return self.status in _REDIRECTS and self.status != _NOT_MODIFIED

    @property
    def is_unchanged(self) -> bool:
        """Whether it says that an earlier answer still holds."""
        return self.status == _NOT_MODIFIED


def parse_response(record: WarcRecord) -> Response:
    """Takes a response out of its record.

    Lines of headers may end in bare newlines; what is no HTTP has the record's type.

    Raises:
        Rejected: there is no status, or headers do not end within the limit.
    """
    content = record.content
    of_record = record.header("content-type")
    if not content.startswith(b"HTTP/") and not of_record.lower().startswith("application/http"):
        return Response(200, {"content-type": [of_record]}, content, record.length)
    content = content.lstrip(b"\r\n") if content[:1] in (b"\r", b"\n") else content
    cut = record.length - len(record.content)
    status = _STATUS_LINE.match(content)
    if status is None:
        if not content:  # some revisit records hold nothing
            return Response(_NOT_MODIFIED, {}, b"", 0)
        found = f"found {content[:20]!r}, expected the status of an HTTP response"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    end = _HEADER_END.search(content, 0, MAX_HEADER_BYTES)
    if end is None and len(content) > MAX_HEADER_BYTES:
        raise Rejected(Reason.MALFORMED_RECORD, f"found HTTP headers over {MAX_HEADER_BYTES} bytes")
    first = _LINE_END.search(content, status.end())
    lines = content[first.end() if first else len(content) : end.start() if end else len(content)]
    body = content[end.end() :] if end else b""
    return Response(int(status[1]), read_headers(lines), body, len(body) + cut)


def is_page(response: Response, max_bytes: int) -> bool:
    """Whether a response is an HTML page: by its type, or, where it has none, by how it starts.

    Source: WHATWG MIME Sniffing Standard, 7.1.

    Args:
        response: with its body.
        max_bytes: of the body that may be unpacked to look at it.
    """
    media_type = response.media_type
    if media_type not in _UNKNOWN_TYPES:
        return media_type in PAGE_TYPES
    try:
        return _PAGE_START.match(read_body(response, max_bytes)) is not None
    except Rejected:
        return False


def read_body(response: Response, max_bytes: int) -> bytes:
    """The body as a browser gets it, of which no more than allowed is ever unpacked.

    What is not packed as its header says was unpacked when it was archived, and stays.

    Raises:
        Rejected: it is too large, or cannot be unpacked.
    """
    if response.size > max_bytes:
        raise Rejected(Reason.PAGE_TOO_LARGE, f"found {response.size} bytes, allowed {max_bytes}")
    body = response.body
    transfer = [word.strip() for word in response.header("transfer-encoding").lower().split(",")]
    if "chunked" in transfer:
        body = _join_chunks(body)
    encodings = [word.strip() for word in response.header("content-encoding").lower().split(",")]
    for encoding in reversed([*encodings, *(word for word in transfer if word != "chunked")]):
        try:
            body = _unpack(body, encoding, max_bytes)
        except Rejected as error:
            if error.reason != Reason.HTTP_ENCODING or not _is_unpacked(body):
                raise
    if body.startswith(_GZIP) and response.media_type in PAGE_TYPES:
        body = _unpack_frames(body, max_bytes)  # packed without a word
    return body


def _content_type(response: Response) -> tuple[str, str | None]:
    """The last type that a response gives, and its charset."""
    media_type, charset = "", None
    for value in response.header("content-type").split(","):
        found = _MEDIA_TYPE.match(value.strip())
        if found is None or (found[0] == "*/*" and media_type):
            continue
        label = _CHARSET.search(value)
        if label is not None or found[0].lower() != media_type:
            charset = label[1] if label is not None else None
        media_type = found[0].lower()
    return media_type, charset


def _join_chunks(body: bytes) -> bytes:
    """Undoes chunked transfer; a body that is not chunked was joined when it was archived."""
    pieces, position = [], 0
    while match := _CHUNK_SIZE.match(body, position):
        size = int(match[1], 16)
        end = match.end() + size
        newline = _NEWLINE.match(body, end)
        if size and newline is None and end < len(body):
            return b"".join(pieces) or body  # what looked like a size is text
        pieces.append(body[match.end() : end])
        if not size or newline is None:
            break
        position = newline.end()
    return b"".join(pieces) if pieces else body


def _unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    match encoding:
        case "" | "identity" | "none":
            return body
        case "gzip" | "x-gzip" | "zstd":
            if body.startswith((_GZIP, _ZSTD)):
                return _unpack_frames(body, max_bytes)
            if body.startswith(_GZIP[:2]):
                raise Rejected(Reason.HTTP_ENCODING, "found a gzip member of an unknown method")
            return body
        case "deflate":
            try:
                return decompression.unpack_limited(body, decompression.GzipFrame(), max_bytes)
            except Rejected as error:
                if error.reason != Reason.HTTP_ENCODING:
                    raise
            # With the header of zlib, or, from some servers, without.
            frame = decompression.GzipFrame(has_header=False)
            return decompression.unpack_limited(body, frame, max_bytes)
        case "br":
            return decompression.unpack_limited(body, decompression.BrotliFrame(), max_bytes)
    found = f"found Content-Encoding {encoding[:40]!r}, expected gzip, deflate, br or zstd"
    raise Rejected(Reason.HTTP_ENCODING, found)


def _unpack_frames(body: bytes, max_bytes: int) -> bytes:
    """Unpacks gzip members or zstd frames; other bytes behind the first are left."""
    unpacker = decompression.PackedFile(io.BytesIO(body)).unpack()
    pieces, size = [], 0
    try:
        while (piece := unpacker.read()) is not None:
            size += len(piece)
            if size > max_bytes:
                raise Rejected(Reason.PAGE_TOO_LARGE, f"found more than {max_bytes} bytes, allowed")
            pieces.append(piece)
    except decompression.BrokenFrame as error:
        if not error.position:
            raise Rejected(Reason.HTTP_ENCODING, error.detail) from None
    return b"".join(pieces)


def _is_unpacked(body: bytes) -> bool:
    """Whether a body is plainly no compressed one: a page, an image, or other text."""
    if _PAGE_START.match(body) or _IMAGE_START.match(body):
        return True
    start = body[:_SEEN]
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or len(start) < _SEEN:
            return False
    return bool(start) and not _CONTROL.search(start)
