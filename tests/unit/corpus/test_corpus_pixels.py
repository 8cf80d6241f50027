"""Every mode and depth becomes what a person sees; references are computed without Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mm1_pipeline.corpus.images import (
    FORMATS,
    RejectedImage,
    check_image,
    look_at_image,
    open_image,
)
from mm1_pipeline.corpus.pixels import UnclearPixelsError, exif_orientation, to_rgb
from typed_values import pixel

SIDES = (16, 12)
RAMP = np.linspace(0, 1, SIDES[0] * SIDES[1]).reshape(SIDES[::-1])


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(samples: np.ndarray, bits: int, *, photometric: int = 1, sign: int = 1) -> bytes:
    """An uncompressed little-endian TIFF of one sample a pixel."""
    height, width = samples.shape
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        body = b"".join(int(value).to_bytes(3, "big") for value in packed)
    else:
        body = samples.tobytes()
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(body)), (339, 3, sign),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHLL", tag, kind, 1, value)
    return struct.pack("<2sHL", b"II", 42, 8 + len(body)) + body + directory + bytes(4)


def png(rows: bytes, bits: int, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG with samples of any depth; every row starts with its filter."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", *SIDES, bits, colour, 0, 0, 0)
    found = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    found += chunk(b"tRNS", transparent) if transparent else b""
    return found + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def ramp(limit: float, kind: str) -> np.ndarray:
    return (RAMP * limit).astype(kind)


def signed(low: int, high: int) -> np.ndarray:
    return (low + RAMP * (high - low)).astype("<i4")


DEEP_GREYS = {
    "16 bits": (tiff(ramp(65_535, "<u2"), 16), RAMP),
    "16 bits, white is zero": (tiff(ramp(65_535, "<u2"), 16, photometric=0), 1 - RAMP),
    "12 bits": (tiff(ramp(4_095, "<u2"), 12), RAMP),
    "15 bits with a sign": (tiff(ramp(32_767, "<i2"), 16, sign=2), RAMP),
    "7 bits with a sign": (tiff(ramp(127, "<i1"), 8, sign=2), RAMP),
    "32 bits to 65535": (tiff(ramp(65_535, "<i4"), 32, sign=2), RAMP),
    "32 bits without a sign": (tiff(ramp(65_535, "<u4"), 32), RAMP),
    "32 bits to 255": (tiff(ramp(255, "<i4"), 32, sign=2), RAMP),
    "floats to 1": (tiff(ramp(1, "<f4"), 32, sign=3), RAMP),
    "floats to 1, white is zero": (tiff(ramp(1, "<f4"), 32, sign=3, photometric=0), 1 - RAMP),
    "floats to 255": (tiff(ramp(255, "<f4"), 32, sign=3), RAMP),
    "floats to 65535": (tiff(ramp(65_535, "<f4"), 32, sign=3), RAMP),
    "8 bits, white is zero": (tiff(ramp(255, "<u1"), 8, photometric=0), 1 - RAMP),
}


@pytest.mark.parametrize("name", DEEP_GREYS)
def test_deep_greys_keep_their_brightness(name):
    data, expected = DEEP_GREYS[name]
    found = np.asarray(open_image(data)).astype(float)
    assert np.abs(found - 255 * expected[..., None]).max() <= 2.5  # a step of 7 bits
    assert check_image(data) == look_at_image(data)[:2] == SIDES


MEASUREMENTS = {
    "16 bits with a sign": (tiff(signed(-32_768, 32_767).astype("<i2"), 16, sign=2), "-32768"),
    "8 bits with a sign": (tiff(signed(-128, 127).astype("<i1"), 8, sign=2), "mode L"),
    "32 bits below zero": (tiff(signed(-5, 255), 32, sign=2), "mode I from -5 to 255"),
    "32 bits far above": (tiff(signed(0, 10**9), 32, sign=2), "mode I from 0 to 1e+09"),
    "floats below zero": (tiff(ramp(1, "<f4") - 0.5, 32, sign=3), "mode F from -0.5 to 0.5"),
    "floats far above": (tiff(ramp(1e9, "<f4"), 32, sign=3), "mode F"),
    "not a number": (tiff(np.where(RAMP > 0.9, np.nan, RAMP).astype("<f4"), 32, sign=3), "nan"),
    "infinite": (tiff(np.where(RAMP > 0.9, np.inf, RAMP).astype("<f4"), 32, sign=3), "inf"),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_no_pictures(name):
    data, named = MEASUREMENTS[name]
    for look in (open_image, check_image, look_at_image):
        with pytest.raises(RejectedImage, match="image_undecodable") as caught:
            look(data)
        assert named in caught.value.detail


def test_transparent_colours_are_those_of_the_file():
    """PNG states the colour in the file's own bits, which Pillow changes."""
    white = 255
    for bits, colour, transparent, opaque in (
        (1, 0, 1, 0),
        (2, 0, 1, 3 * 0 + 2),
        (4, 0, 5, 6),
        (8, 0, 100, 101),
        (16, 0, 25_700, 25_701),
        (8, 2, 100, 101),
        (16, 2, 25_700, 25_700 + 256),
    ):
        values = [transparent, opaque] * (SIDES[0] // 2)
        channels = 3 if colour == 2 else 1
        if bits >= 8:
            row = b"".join(value.to_bytes(bits // 8, "big") * channels for value in values)
        else:
            digits = "".join(f"{value:0{bits}b}" for value in values)
            row = int(digits, 2).to_bytes(len(digits) // 8, "big")
        statement = transparent.to_bytes(2, "big") * channels
        opened = np.asarray(open_image(png((b"\0" + row) * SIDES[1], bits, colour, statement)))
        shade = opaque * 255 // (2**bits - 1)
        assert (opened[:, 0::2] == white).all(), (bits, colour)
        assert np.abs(opened[:, 1::2].astype(int) - shade).max() <= 1, (bits, colour)


def test_colours_and_transparency_of_every_mode():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (*SIDES[::-1], 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, SIDES[::-1], dtype=np.uint8)
    grey = colours[..., 0]
    share = alpha[..., None] / 255
    on_white = colours * share + 255 * (1 - share)
    grey_on_white = np.repeat((grey * share[..., 0] + 255 * (1 - share[..., 0]))[..., None], 3, 2)
    rgb = Image.fromarray(colours)
    rgba = Image.fromarray(np.dstack([colours, alpha]))
    la = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    inks = Image.merge("CMYK", [*(Image.fromarray(255 - colours[..., i]) for i in range(3)),
                                Image.new("L", SIDES, 0)])  # fmt: skip
    for image, expected, tolerance in (
        (rgb, colours, 0),
        (rgba, on_white, 1),
        (rgba.convert("RGBa"), on_white, 3),  # premultiplied: few bits are left where thin
        (la, grey_on_white, 1),
        (la.convert("La"), grey_on_white, 3),
        (rgb.convert("RGBX"), colours, 0),
        (Image.fromarray(grey), np.repeat(grey[..., None], 3, 2), 0),
        (Image.fromarray(grey > 127), np.repeat(255 * (grey > 127)[..., None], 3, 2), 0),
        (inks, colours, 1),
        (rgb.convert("YCbCr"), colours, 3),
        (rgb.convert("HSV"), colours, 8),
    ):
        found = np.asarray(to_rgb(image)).astype(float)
        assert np.abs(found - expected).max() <= tolerance, image.mode
    flat = Image.new("RGB", SIDES, (200, 30, 60)).convert("LAB")
    for lab in (to_rgb(flat), open_image(encode(flat, "TIFF"))):
        assert np.abs(np.asarray(lab).astype(int) - (200, 30, 60)).max() <= 3


def test_palettes_may_be_transparent_in_every_way():
    image = Image.new("P", SIDES)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1] * (SIDES[0] * SIDES[1] // 2))
    red, green, white, pink = (255, 0, 0), (0, 255, 0), (255, 255, 255), (255, 127, 127)
    for data, first in (
        (encode(image), red),
        (encode(image, transparency=0), white),
        (encode(image, transparency=b"\x80\xff\xff"), pink),
        (encode(image, "GIF"), red),
        (encode(image, "GIF", transparency=0), white),
        (encode(image.convert("PA"), "TIFF"), red),
    ):
        opened = open_image(data)
        assert np.abs(np.subtract(pixel(opened, 0, 0), first)).max() <= 1
        assert opened.getpixel((1, 0)) == green


def test_inks_of_a_jpeg_are_inverted_as_adobe_writes_them():
    image = Image.new("CMYK", SIDES, (0, 255, 255, 0))
    assert (
        np.abs(np.subtract(pixel(open_image(encode(image, "JPEG")), 3, 3), (255, 0, 0))).max() < 6
    )


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_container_is_turned_upright(kind, orientation):
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:16, :32] = (250, 0, 0)
    pixels[32:, :32] = (0, 250, 0)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    more = {"save_all": True, "append_images": [stored]} if kind == "MPO" else {}
    data = encode(stored, kind, exif=exif, **more)
    opened = open_image(data)
    turn = orientation if 1 <= orientation <= 8 else 1
    expected = {  # by EXIF's definition: where row 0 and column 0 of the stored picture go
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(pixels),
    }[turn]  # fmt: skip
    assert check_image(data) == look_at_image(data)[:2] == opened.size == expected.shape[1::-1]
    assert np.abs(np.asarray(opened).astype(int) - expected).mean() < 12


def test_orientation_is_read_without_the_rest():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = exif.tobytes()
    assert exif_orientation(plain) == exif_orientation(plain.removeprefix(b"Exif\0\0")) == 6
    big = struct.pack(">2sHLHHHLHH", b"MM", 42, 8, 1, 0x0112, 3, 1, 8, 0)
    assert exif_orientation(big) == 8
    for damaged in (None, b"", b"Exif\0\0", plain[:20], big[:12], b"II" + b"\xff" * 60):
        assert exif_orientation(damaged) == 1


def test_loaded_images_and_arrays_are_converted_alike():
    """As the processor of an exported model gets them."""
    data = png((b"\0" + struct.pack(">16H", *range(0, 64_000, 4_000))) * SIDES[1], 16, 0)
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert to_rgb(loaded).tobytes() == open_image(data).tobytes()
    assert to_rgb(Image.fromarray(ramp(1, "f4"))).getpixel((15, 11)) == (255, 255, 255)
    with pytest.raises(UnclearPixelsError):
        to_rgb(Image.fromarray(signed(-1, 5)))


def test_all_formats_are_covered_here():
    assert set(FORMATS) == {"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"}
