"""Image files without what no pixel needs, before a decoder sees them.

Metadata must not make the pixels unusable: colour profiles and texts that are damaged or larger
than a decoder likes are left out, and so is what a few bytes of them can cost: directories of
thousands of entries that each claim the whole file, comments that are joined one by one, frames
that nobody looks at. What is left is pixel for pixel the same image. Then what decoding would
cost is counted, as far as the size in pixels does not tell it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mm1_pipeline.corpus.pixels import exif_orientation
from mm1_pipeline.ground.rejects import Reason, Rejected

_MAX_PARTS = 100_000
"""Segments, chunks or blocks of one file. A PNG of 50 MB in pieces of 8 kB has 6,000."""
_MAX_SCANS = 500
_MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans of a JPEG times its pixels: 40 scans at 50 million pixels. Progressive files have about
ten; every scan walks over all pixels, though it may hold a few bytes only."""
_MAX_RUN_LENGTH_BYTES, _MAX_RUN_LENGTH_PIXELS = 4_000_000, 4_000_000
"""Of run-length coded BMP files, which Pillow decodes in Python."""
_MAX_TIFF_VALUES = 200_000
"""Of one entry: strips or tiles of a TIFF."""
_MAX_TILE_PIXELS = 16_000_000
_MAX_EXIF_BYTES = 1_000_000

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE = frozenset({0x01, 0xD8})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_DROPPED_SEGMENTS = (frozenset(range(_APP0, _APP15 + 1)) - {_APP0, _APP14}) | {_COMMENT}
"""APP0 and APP14 stay: decoders take the colour space from them."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_RUN_LENGTHS = (1, 2)
_TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*")
_TIFF_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 297, 317, 320}
    | {322, 323, 324, 325, 332, 333, 334, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517}
    | {518, 519, 520, 521, 529, 530, 531, 532}
)  # fmt: skip
"""Entries of a TIFF directory that say how its pixels are coded."""
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of a value by its type."""


class LeanImage(NamedTuple):
    """An image file that holds pixels and nothing else.

    Attributes:
        data: The file.
        orientation: What its EXIF data asked for; None where the decoder must be asked.
    """

    data: bytes
    orientation: int | None = None


def strip_metadata(data: bytes) -> LeanImage:
    """Takes out of an image file what no pixel needs.

    What is damaged beyond being walked through is left as it is, for the decoder to name.

    Raises:
        Rejected: decoding the file would cost more than its size in pixels tells.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg(data)
    if data.startswith(_PNG_START):
        return _strip_png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return LeanImage(b"".join(_gif_parts(data)), 1)
    if data.startswith((b"II", b"MM")):
        return LeanImage(_strip_tiff(data), 1)  # Pillow turns TIFF files itself
    if data.startswith(b"BM"):
        _check_bmp(data)
    elif data[4:8] == b"ftyp":
        _check_exif(data)
    return LeanImage(data)


def _too_complex(found: str) -> Rejected:
    return Rejected(Reason.IMAGE_TOO_COMPLEX, found)


def _strip_jpeg(data: bytes) -> LeanImage:
    """Walks over the segments up to the end of the image; a second one (MPO) is left out."""
    pieces, at = [data[:2]], 2
    orientation, num_scans, num_pixels, num_segments = None, 0, 0, 0
    is_scan = False
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        if (num_segments := num_segments + 1) > _MAX_PARTS:
            raise _too_complex(f"found more than {_MAX_PARTS} segments in a JPEG file")
        kind = marker[1][0]
        if is_scan:
            pieces.append(data[at : marker.start()])
        at = marker.start()
        if kind in _STANDALONE or kind == _END_OF_IMAGE:
            pieces.append(marker[0])
            at, is_scan = at + 2, False
            if kind == _END_OF_IMAGE:
                break
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            is_scan = True
            break
        if kind == _APP1 and orientation is None and data.startswith(b"Exif\0\0", at + 4):
            orientation = exif_orientation(data[at + 4 : end])
        if kind in _START_OF_FRAME:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9].ljust(4, b"\0"))
            num_pixels = max(num_pixels, width * height)
        if kind not in _DROPPED_SEGMENTS:
            pieces.append(data[at:end])
        is_scan = kind == _START_OF_SCAN
        num_scans += is_scan
        at = end
    if marker is None or marker[1][0] != _END_OF_IMAGE:
        pieces.append(data[at:])
        num_scans += data.count(b"\xff\xda", at)
    if num_scans > _MAX_SCANS or num_scans * num_pixels > _MAX_SCANNED_PIXELS:
        raise _too_complex(f"found {num_scans} scans of {num_pixels} pixels in a JPEG file")
    return LeanImage(b"".join(pieces), orientation or 1)


def _strip_png(data: bytes) -> LeanImage:
    """Keeps chunks that are critical, and the transparent colour; also of animations."""
    pieces, at, num_chunks = [_PNG_START], len(_PNG_START), 0
    orientation = 1
    while at < len(data):
        if (num_chunks := num_chunks + 1) > _MAX_PARTS:
            raise _too_complex(f"found more than {_MAX_PARTS} chunks in a PNG file")
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind == b"eXIf":
            orientation = exif_orientation(data[at + 8 : end - 4])
        if kind[:1].isupper() or not kind.isalpha() or kind == b"tRNS":
            pieces.append(data[at:end])
        if kind == b"IEND":
            break
        at = end
    return LeanImage(b"".join(pieces), orientation)


def _gif_parts(data: bytes) -> Iterator[bytes]:
    """A GIF file without its comments and other extensions before the first picture."""
    has_colours, bits = data[10:11] >= b"\x80", (data[10:11] or b"\0")[0] & 7
    at = 13 + (3 * 2 ** (bits + 1) if has_colours else 0)
    yield data[:at]
    num_blocks = 0
    while at < len(data) and data[at] not in b",;":
        start, is_extension = at, data[at] == ord("!")
        is_control = data[at + 1 : at + 2] == b"\xf9"
        at += 2 if is_extension else 1  # anything else between two blocks is passed over
        while at < len(data):
            if (num_blocks := num_blocks + 1) > _MAX_PARTS:
                raise _too_complex(f"found more than {_MAX_PARTS} blocks in a GIF file")
            size = data[at] if is_extension else 0
            at += (1 + size) * is_extension
            if not size:
                break
        if is_extension and is_control:
            yield data[start:at]
    yield data[at:]


def _check_bmp(data: bytes) -> None:
    if len(data) < 34 or data[14] < 40:
        return
    width, height, _, compression = struct.unpack_from("<iiLL", data, 18)
    num_pixels = abs(width * height)
    if compression not in _RUN_LENGTHS:
        return
    if len(data) > _MAX_RUN_LENGTH_BYTES or num_pixels > _MAX_RUN_LENGTH_PIXELS:
        raise _too_complex(
            f"found a run-length coded BMP of {len(data)} bytes and {num_pixels} pixels, allowed "
            f"{_MAX_RUN_LENGTH_BYTES} and {_MAX_RUN_LENGTH_PIXELS}"
        )


def _strip_tiff(data: bytes) -> bytes:
    """Leaves the entries of the first directory that the pixels need, and no other directory."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        is_big = 43 in struct.unpack_from("<H", data, 2) + struct.unpack_from(">H", data, 2)
        count_code, entry_code, size = ("Q", "HHQ", 20) if is_big else ("H", "HHL", 12)
        (start,) = struct.unpack_from(order + ("8xQ" if is_big else "4xL"), data)
        (count,) = struct.unpack_from(order + count_code, data, start)
    except struct.error:
        return data
    first = start + struct.calcsize(order + count_code)
    kept: list[bytes] = []
    for place in range(first, min(first + size * count, len(data) - size + 1), size):
        tag, kind, length = struct.unpack_from(order + entry_code, data, place)
        if tag not in _TIFF_TAGS:
            continue
        if length > _MAX_TIFF_VALUES and _TIFF_SIZES.get(kind, 0) > 1:
            raise _too_complex(f"found {length} values in the entry {tag} of a TIFF file")
        kept.append(data[place : place + size])
        if len(kept) > 2 * len(_TIFF_TAGS):
            raise _too_complex("found the same entries again and again in a TIFF file")
    sides = {struct.unpack_from(f"{order}H", entry)[0]: entry for entry in kept}
    area = 1
    for tag in (_TILE_WIDTH, _TILE_LENGTH):
        if tag in sides:
            kind = struct.unpack_from(f"{order}H", sides[tag], 2)[0]
            code = {3: "H", 4: "L"}.get(kind, "L")
            area *= struct.unpack_from(order + code, sides[tag], size - (8 if is_big else 4))[0]
    if area > _MAX_TILE_PIXELS:
        raise _too_complex(f"found tiles of {area} pixels in a TIFF file")
    packed = struct.pack(order + count_code, len(kept)) + b"".join(kept)
    packed += bytes(8 if is_big else 4)  # no further directory
    return b"".join((data[:start], packed, data[start + len(packed) :]))


def _check_exif(data: bytes) -> None:
    """Adds up what the EXIF data of an AVIF file would be unpacked to.

    Every entry may claim the whole file; as in Pillow, the first that goes beyond it is the last.
    """
    for header in _TIFF_HEADER.finditer(data):
        base, order = header.start(), "<" if header[0].startswith(b"II") else ">"
        total = 0
        try:
            (start,) = struct.unpack_from(f"{order}L", data, base + 4)
            (count,) = struct.unpack_from(f"{order}H", data, base + start)
            for place in range(count):
                entry = base + start + 2 + 12 * place
                _, kind, length, offset = struct.unpack_from(f"{order}HHLL", data, entry)
                num_bytes = length * _TIFF_SIZES.get(kind, 0)
                if num_bytes > 4 and base + offset + num_bytes > len(data):
                    break
                total += num_bytes
        except struct.error:
            pass
        if total > _MAX_EXIF_BYTES:
            raise _too_complex(f"found EXIF data of {total} bytes, allowed {_MAX_EXIF_BYTES}")
