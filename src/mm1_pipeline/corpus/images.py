"""Opens images that nobody has checked: size before pixels, and no surprise afterwards."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, UnidentifiedImageError

from mm1_pipeline.config.ingest import ImageRules
from mm1_pipeline.corpus.fingerprints import Fingerprint, fingerprint
from mm1_pipeline.corpus.quarantine import Reason, Rejected

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Formats that are tried. Others would start converters (EPS) or are no photographs."""

SAFE = ImageRules()
"""Only what protects the machine: sizes in bytes and pixels, and that the image decodes."""

_LOOKED_AT_SIDE = 64
_ORIENTATION = 0x0112
_ORIENTATIONS_ON_THE_SIDE = (5, 6, 7, 8)
_TRUNCATED = ("truncated", "premature end", "unexpected end", "incomplete")


class RejectedImage(Rejected):
    """An image that is not kept, with the reason."""


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
    with _decoding(data, rules) as image:
        return _to_rgb(_upright(image))


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
    with _decoding(data, rules) as image:
        width, height = image.size
        on_side = _orientation(image) in _ORIENTATIONS_ON_THE_SIDE
        # Every byte of a JPEG is still read, but an eighth of its pixels is computed.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
    return (height, width) if on_side else (width, height)


def look_at_image(data: bytes, rules: ImageRules = SAFE) -> tuple[int, int, Fingerprint]:
    """Checks an image as `check_image` does, and takes its fingerprint from the same decoding.

    Args:
        data: the encoded image.
        rules: as for `open_image`.

    Returns:
        Width and height in pixels of the image that `open_image` gives, and its fingerprint.

    Raises:
        RejectedImage: as `open_image`.
    """
    with _decoding(data, rules) as image:
        width, height = image.size
        on_side = _orientation(image) in _ORIENTATIONS_ON_THE_SIDE
        # Of a JPEG no more pixels are computed than the fingerprint needs.
        image.draft(None, (_LOOKED_AT_SIDE, _LOOKED_AT_SIDE))
        found = fingerprint(_to_rgb(_upright(image)))
    return (height, width, found) if on_side else (width, height, found)


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
def _decoding(data: bytes, rules: ImageRules) -> Iterator[Image.Image]:
    """Opens an image whose header passes the rules, and names what goes wrong inside."""
    _check_bytes(len(data), rules)
    try:
        with warnings.catch_warnings():
            # Damaged metadata is no news, and our own limit on pixels decides before decoding.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size, rules)
                yield image
    except RejectedImage:
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage(Reason.IMAGE_TOO_MANY_PIXELS, str(error)) from None
    except UnidentifiedImageError:
        found = data[:8].hex(" ")
        raise RejectedImage(
            Reason.IMAGE_UNDECODABLE, f"found a file that starts with {found}, expected an image"
        ) from None
    except Exception as error:
        # Decoders of damaged files raise nearly everything: SyntaxError, struct.error, KeyError.
        lowered = str(error).lower()
        cut = any(word in lowered for word in _TRUNCATED) or isinstance(error, EOFError)
        cut = cut or _is_cut_riff(data)
        reason = Reason.IMAGE_TRUNCATED if cut else Reason.IMAGE_UNDECODABLE
        raise RejectedImage(reason, f"{type(error).__name__}: {error}") from None


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


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data does not make the pixels unusable
        return 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except (KeyError, ValueError, TypeError, SyntaxError):  # an orientation that cannot be read
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # A plain conversion would cut 16-bit greys at 255 and turn the image white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")
