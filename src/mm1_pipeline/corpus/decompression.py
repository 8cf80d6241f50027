"""Compressed streams in bounded memory that notice when they end too early."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from mm1_pipeline.corpus.quarantine import Reason, Rejected

ERRORS = (zlib.error, zstandard.ZstdError)
"""What a damaged stream raises."""

_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 1 << 10
"""Bytes decompressed at once: a hostile zstd stream swells 33,000 times, to 34 MB."""


def read_chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Reads a file in pieces, unpacking it as its name says.

    Args:
        stream: the file, open for reading bytes.
        name: ends in `.gz`, `.zst`, or anything else for a plain file.

    Raises:
        Rejected: a compressed file ends in the middle.
        zlib.error: a gzip file is damaged.
        zstandard.ZstdError: a zstd file is damaged, or needs more than 128 MB to unpack.
    """
    if name.endswith(".gz"):
        return _unpack(stream, gzip_frame)
    if name.endswith(".zst"):
        return _unpack(stream, zstd_frame)
    return iter(lambda: stream.read(_CHUNK), b"")


def unpack_limited(data: bytes, frame: Callable[[], Any], limit: int) -> bytes:
    """Unpacks a small body that may claim to be small and be huge.

    Args:
        data: the compressed body.
        frame: makes the decompressor.
        limit: bytes above which it is refused.

    Raises:
        Rejected: the body is larger than allowed, or ends in the middle.
    """
    decompressor, pieces, size = frame(), [], 0
    for start in range(0, len(data), _COMPRESSED_CHUNK):
        piece = decompressor.decompress(data[start : start + _COMPRESSED_CHUNK])
        size += len(piece)
        if size > limit:
            raise Rejected(Reason.PAGE_TOO_LARGE, f"found more than {limit} bytes, allowed")
        pieces.append(piece)
        if decompressor.eof:
            return b"".join(pieces)
    raise Rejected(Reason.HTTP_ENCODING, "found a compressed body that ends in the middle")


def gzip_frame() -> Any:
    """A decompressor of one gzip member or zlib stream."""
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)


def deflate_frame() -> Any:
    """A decompressor of bare deflate data, which some servers send."""
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS)


def zstd_frame() -> Any:
    """A decompressor of one zstd frame."""
    return zstandard.ZstdDecompressor().decompressobj()


def _unpack(stream: BinaryIO, new_frame: Callable[[], Any]) -> Iterator[bytes]:
    """Unpacks frame after frame: both formats may be written in several."""
    frame, started = new_frame(), False
    while compressed := stream.read(_COMPRESSED_CHUNK):
        while compressed:
            piece = frame.decompress(compressed)
            started = True
            for start in range(0, len(piece), _CHUNK):
                yield piece[start : start + _CHUNK]
            if not frame.eof:
                break
            compressed = frame.unused_data.lstrip(b"\0")  # archives are padded with zeros
            frame, started = new_frame(), False
    if started:
        raise Rejected(Reason.TRUNCATED_FILE, "found a compressed file that ends in the middle")
