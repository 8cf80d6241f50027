"""From what a decoder gives to RGB as a person sees it, the same way for every use of an image.

Needs Pillow and NumPy alone, and nothing else of this project.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by EXIF's orientation."""
ON_THE_SIDE = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_MAX_TAGS = 1_000
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_BYTE, _WORD = 255, 65_535
_STRIP_PIXELS = 4_000_000


class UnclearPixelsError(ValueError):
    """The file decodes, but nothing says which of its values is black and which is white."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB.

    Transparent parts become white. Greys of more than 8 bits are scaled to 8: 16-bit ones from
    0..65535. Where a type has no range of its own (32-bit integers, floats), the values choose
    among those in use: floats within 0..1, then 0..255, then 0..65535. Anything else, negative
    values above all, is a measurement, not a picture.

    Args:
        image: as Pillow opened it. One that is not loaded yet still tells how many bits the
            values of its file have, which transparent colours are stated in.

    Returns:
        A new image in mode RGB; not turned.

    Raises:
        UnclearPixelsError: with the mode and the range of values.
    """
    transparent = _transparent_value(image)
    image.load()
    scale, inverts = _grey_scale(image)
    if scale is not None:
        grey = _to_bytes(image, scale, inverts=inverts)
        if transparent is None:
            return grey.convert("RGB")
        # Compared at full depth: a grey one step away is opaque.
        alpha = np.where(np.asarray(image) == transparent, 0, _BYTE).astype(np.uint8)
        return _on_white(Image.merge("LA", (grey, Image.fromarray(alpha))))
    if transparent is not None:
        image.info["transparency"] = transparent
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("RGB")


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turns a picture as EXIF's orientation says; 1, or a value that is none, leaves it."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def exif_orientation(exif: bytes | None) -> int:
    """The orientation that EXIF data ask for, 1 where they are damaged or ask for none.

    Reads that one entry, however large the rest claims to be. Orientations in XMP or in texts
    of ImageMagick do not count, as in browsers.

    Args:
        exif: what a file holds, with or without `Exif` in front.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}L", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * min(count, _MAX_TAGS), 12):
            tag, kind, length = struct.unpack_from(f"{order}HHL", data, place)
            if tag == _ORIENTATION and length == 1 and kind in (_SHORT, _LONG):
                code = "H" if kind == _SHORT else "L"
                (found,) = struct.unpack_from(f"{order}{code}", data, place + 8)
                return found if found in TURNS else 1
    except struct.error:
        pass
    return 1


def _grey_scale(image: Image.Image) -> tuple[float | None, bool]:
    """What the values of a deep grey are multiplied by, None for others; whether 0 is white.

    Pillow forgets what a TIFF says of its samples: how many of the 16 bits are used, whether they
    have a sign, and, of more than 8 bits, which end is white.
    """
    tags: Any = getattr(image, "tag_v2", {})
    (bits, *_) = tags.get(_BITS) or (0,)
    (sample_format, *_) = tags.get(_SAMPLE_FORMAT) or (1,)
    inverts = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if sample_format == _SIGNED and bits in (8, 16):
        return _BYTE / _checked_range(image, 2 ** (bits - 1) - 1), inverts
    if image.mode.startswith("I;16"):
        depth = bits if 8 < bits < 16 else 16
        return (1 / 257 if depth == 16 else _BYTE / (2**depth - 1)), inverts
    if image.mode in ("I", "F"):
        ranges = (1, _BYTE, _WORD) if image.mode == "F" else (_BYTE, _WORD)
        return _BYTE / _checked_range(image, *ranges), inverts
    return None, False


def _checked_range(image: Image.Image, *ranges: int) -> int:
    """The smallest of the ranges that holds all values."""
    values = np.asarray(image)
    low, high = values.min(), values.max()  # either is NaN where any value is
    for limit in ranges:
        if low >= 0 and high <= limit:
            return limit
    raise UnclearPixelsError(
        f"found greys of mode {image.mode} from {low:g} to {high:g}, expected values from 0 to "
        f"{' or '.join(map(str, ranges))}"
    )


def _to_bytes(image: Image.Image, scale: float, *, inverts: bool) -> Image.Image:
    """Greys in mode L."""
    if image.mode == "F":
        rows = max(1, _STRIP_PIXELS // image.width)
        values, found = np.asarray(image), np.empty((image.height, image.width), np.uint8)
        for top in range(0, image.height, rows):
            found[top : top + rows] = np.rint(values[top : top + rows] * scale)
        grey = Image.fromarray(found)
    else:
        half = 0 if image.mode.startswith("I;16") else 0.5  # Pillow cuts fractions
        grey = image.convert("I").point(lambda value: value * scale + half).convert("L")
    return grey.point(lambda value: _BYTE - value) if inverts else grey


def _transparent_value(image: Image.Image) -> Any:
    """The transparent colour of a PNG in the units of its pixels, None where that is at hand.

    PNG states it in the bits of the file; Pillow stretches 1, 2 and 4 bits to 8, cuts those of
    colours at 8, and leaves the statement as it was.
    """
    value = image.info.get("transparency")
    if value is None or isinstance(value, bytes) or image.mode == "P":
        return None
    if image.mode.startswith("I"):
        return value
    tiles = getattr(image, "tile", None)
    parameters = tiles[0][3] if tiles else None
    raw = parameters if isinstance(parameters, str) else (parameters or ("",))[0]
    if isinstance(value, tuple):
        deep = raw == "RGB;16B" or max(value) > _BYTE
        return tuple(part >> 8 for part in value) if deep else None
    factor = {"1": 255, "L;2": 85, "L;4": 17}.get(raw)
    return value * factor if factor and getattr(image, "format", None) == "PNG" else None


def _on_white(image: Image.Image) -> Image.Image:
    """Puts an image with transparency on white, a strip at a time for the sake of memory."""
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image if box[3] == image.height and not top else image.crop(box)
        layer = strip.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        result.paste(Image.alpha_composite(background, layer).convert("RGB"), box)
    return result
