"""Opens images that nobody has checked: size before pixels, and no surprise afterwards."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mm1_pipeline.config.ingest import ImageRules
from mm1_pipeline.corpus.containers import strip_metadata
from mm1_pipeline.corpus.perceptual_hash import PerceptualHash, perceptual_hash
from mm1_pipeline.corpus.pixels import (
    ON_THE_SIDE,
    UnclearPixelsError,
    exif_orientation,
    to_rgb,
    turn_upright,
)
from mm1_pipeline.ground.rejects import Reason, Rejected

FORMAT_SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "jif", "mpo"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "TIFF": ("tiff", "tif"),
    "AVIF": ("avif",),
}
"""Formats that are read, with the suffixes of their files; the first is the one that is written.

What photographs and drawings on the web are published in, and what Pillow decodes by itself.
Photographs of several pictures (MPO) are JPEG files. Left out: formats that would start a
converter (EPS, WMF), that no browser shows (JPEG 2000, PSD, PNM), that hold icons (ICO, ICNS), and
HEIC and JPEG XL, for which Pillow has no decoder.
"""

FORMATS = tuple(FORMAT_SUFFIXES)
"""Formats that are tried."""
IMAGE_SUFFIXES = frozenset(
    {suffix for suffixes in FORMAT_SUFFIXES.values() for suffix in suffixes}
    | {"heic", "heif", "jxl", "jp2"}
)
"""Suffixes of image files, in lower case and without a dot; those that cannot be decoded are among
them, so that they are refused by name and not overlooked."""

SAFE = ImageRules()
"""Only what protects the machine: sizes in bytes and pixels, and that the image decodes."""

_LOOKED_AT_SIDE = 64
_OTHER_FORMATS = (
    (re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0[\x01\x02]\0"), "icon"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"\s*(<\?xml.*?)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE), "HTML"),
)
"""What is often found in the place of an image, by how it starts."""
_LOOKED_AT_BYTES = 512
_TRUNCATED = ("truncated", "premature end", "unexpected end", "incomplete")


ImageSource = Path | bytes
"""A file, or an encoded image."""


class RejectedImage(Rejected):
    """An image that is not kept, with the reason."""


def encoded(source: ImageSource) -> bytes:
    """The encoded image, out of its file where it lies in one.

    Raises:
        ValueError: There is no such file, or it is larger than any image may be.
    """
    if isinstance(source, bytes):
        return source
    try:
        if not source.is_file():
            raise ValueError(f"found no file {source.name} in {source.parent.name}")
        size = source.stat().st_size
        if size > SAFE.max_bytes:
            raise ValueError(f"found {size} bytes in {source.name}, allowed {SAFE.max_bytes}")
        return source.read_bytes()
    except OSError:
        raise ValueError(f"found no file {source.name} in {source.parent.name}") from None


def open_image(data: bytes, rules: ImageRules = SAFE) -> Image.Image:
    """Decodes an image as a person sees it.

    Transparent parts become white, the orientation that the file asks for is applied, and of an
    animation the first frame is taken. Nothing is decoded before its size is known.

    Args:
        data: the encoded image.
        rules: a rule that is None does not apply; the default only protects the machine.

    Returns:
        The image in mode RGB.

    Raises:
        RejectedImage: with the rule that is broken, or the way in which it does not decode.
    """
    with _decoding(data, rules) as (image, orientation):
        return turn_upright(to_rgb(image), orientation)


def check_image(data: bytes, rules: ImageRules = SAFE) -> tuple[int, int]:
    """Decodes an image only to see that it is whole, at a fraction of the cost.

    Args:
        data: the encoded image.
        rules: as for `open_image`.

    Returns:
        Width and height in pixels of the image that `open_image` gives.

    Raises:
        RejectedImage: as `open_image`.
    """
    with _decoding(data, rules) as (image, orientation):
        width, height = image.size
        # Every byte of a JPEG is still read, but an eighth of its pixels is computed.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        to_rgb(image)
    return (height, width) if orientation in ON_THE_SIDE else (width, height)


def look_at_image(data: bytes, rules: ImageRules = SAFE) -> tuple[int, int, PerceptualHash]:
    """Checks an image as `check_image` does, and takes its perceptual hash from the same decoding.

    Args:
        data: the encoded image.
        rules: as for `open_image`.

    Returns:
        Width and height in pixels of the image that `open_image` gives, and its perceptual hash.

    Raises:
        RejectedImage: as `open_image`.
    """
    with _decoding(data, rules) as (image, orientation):
        width, height = image.size
        # Of a JPEG no more pixels are computed than the perceptual hash needs.
        image.draft(None, (_LOOKED_AT_SIDE, _LOOKED_AT_SIDE))
        found = perceptual_hash(turn_upright(to_rgb(image), orientation))
    on_side = orientation in ON_THE_SIDE
    return (height, width, found) if on_side else (width, height, found)


def image_format(data: bytes) -> str:
    """The format of an image that was opened before, one of FORMATS."""
    with Image.open(io.BytesIO(strip_metadata(data).data), formats=FORMATS) as image:
        assert image.format is not None
        return image.format


def check_url(url: str | None, rules: ImageRules) -> None:
    """Refuses an image by its address alone.

    Raises:
        RejectedImage: the URL contains one of the stop words.
    """
    lowered = (url or "").lower()
    for word in rules.url_stop_words or ():
        if word in lowered:
            raise RejectedImage(Reason.IMAGE_URL_STOP_WORD, f"found {word!r} in the URL")


@contextmanager
def _decoding(data: bytes, rules: ImageRules) -> Iterator[tuple[Image.Image, int]]:
    """Opens an image whose header passes the rules, and names what goes wrong inside.

    Yields:
        The image, its size known and its pixels not yet decoded, and its orientation.
    """
    _check_bytes(len(data), rules)
    try:
        lean = strip_metadata(data)
        with warnings.catch_warnings():
            # Damaged metadata is no news, and our own limit on pixels decides before decoding.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(lean.data), formats=FORMATS) as image:
                _check_size(*image.size, rules)
                orientation = lean.orientation
                if orientation is None:
                    orientation = exif_orientation(image.info.get("exif"))
                yield image, orientation
    except RejectedImage:
        raise
    except Rejected as error:
        raise RejectedImage(error.reason, error.detail) from None
    except UnclearPixelsError as error:
        raise RejectedImage(Reason.IMAGE_UNDECODABLE, str(error)) from None
    except Image.DecompressionBombError as error:
        raise RejectedImage(Reason.IMAGE_TOO_MANY_PIXELS, str(error)) from None
    except UnidentifiedImageError:
        raise RejectedImage(Reason.IMAGE_UNDECODABLE, _name_unread(data)) from None
    except Exception as error:
        # Decoders of damaged files raise nearly everything: SyntaxError, struct.error, KeyError.
        lowered = str(error).lower()
        cut = any(word in lowered for word in _TRUNCATED) or isinstance(error, EOFError)
        cut = cut or _is_cut_riff(data)
        reason = Reason.IMAGE_TRUNCATED if cut else Reason.IMAGE_UNDECODABLE
        raise RejectedImage(reason, f"{type(error).__name__}: {error}") from None


def _name_unread(data: bytes) -> str:
    start = data[:_LOOKED_AT_BYTES]
    kind = next((name for shape, name in _OTHER_FORMATS if shape.match(start)), None)
    found = f"a file that starts with {data[:8].hex(' ')}" if kind is None else f"{kind} data"
    return f"found {found}, expected an image in {', '.join(FORMATS)}"


def _check_bytes(size: int, rules: ImageRules) -> None:
    if not size:
        raise RejectedImage(Reason.IMAGE_EMPTY, "found 0 bytes")
    if size > rules.max_bytes:
        raise RejectedImage(
            Reason.IMAGE_TOO_MANY_BYTES, f"found {size} bytes, allowed {rules.max_bytes}"
        )


def _check_size(width: int, height: int, rules: ImageRules) -> None:
    found = f"found {width} x {height} pixels"
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise RejectedImage(Reason.IMAGE_UNDECODABLE, found)
    if width * height > rules.max_pixels:
        raise RejectedImage(
            Reason.IMAGE_TOO_MANY_PIXELS, f"{found}, allowed {rules.max_pixels} together"
        )
    if rules.min_side is not None and shorter < rules.min_side:
        raise RejectedImage(
            Reason.IMAGE_TOO_SMALL, f"{found}, expected sides of at least {rules.min_side}"
        )
    if rules.max_side is not None and longer > rules.max_side:
        raise RejectedImage(
            Reason.IMAGE_TOO_LARGE, f"{found}, expected sides of at most {rules.max_side}"
        )
    if rules.max_aspect_ratio is not None and longer > rules.max_aspect_ratio * shorter:
        raise RejectedImage(
            Reason.IMAGE_ASPECT_RATIO,
            f"{found}, expected an aspect ratio of at most {rules.max_aspect_ratio:g}",
        )


def _is_cut_riff(data: bytes) -> bool:
    """Whether a WebP file is shorter than it says; its decoder does not tell."""
    return data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
