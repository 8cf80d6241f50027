"""Metadata never costs the pixels, and never more than they do."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from corpus_builders import draw_pattern, noise
from PIL import Image, ImageOps

from mm1_pipeline.corpus import containers, images
from mm1_pipeline.corpus.containers import strip_metadata
from mm1_pipeline.corpus.images import RejectedImage, check_image, open_image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    crc = zlib.crc32(kind + data) ^ damage
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def directory(num_entries: int, size: int) -> bytes:
    """EXIF data whose every entry claims all of them."""
    data = bytearray(size)
    struct.pack_into("<2sHLH", data, 0, b"II", 42, 8, num_entries)
    for number in range(num_entries):
        struct.pack_into("<HHLL", data, 10 + 12 * number, 1_000 + number, 1, size - 10, 1)
    return bytes(data)


def with_jpeg_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def with_png_chunks(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def refusal(data: bytes) -> str:
    found = set()
    for look in (open_image, check_image):
        with pytest.raises(RejectedImage) as caught:
            look(data)
        found.add(caught.value.reason.value)
    (reason,) = found
    return reason


@pytest.mark.parametrize("kind", [*images.FORMATS, "MPO"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
def test_stripping_changes_no_pixel(kind, mode):
    image = draw_pattern(3).convert(mode)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    options = {"exif": exif} if kind != "BMP" else {}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [image]}
    try:
        data = encode(image, kind, **options)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"Pillow writes no {kind} of mode {mode}")
    with Image.open(io.BytesIO(data)) as before:
        expected = ImageOps.exif_transpose(before)
        if expected.has_transparency_data:
            layer = expected.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            expected = Image.alpha_composite(white, layer)
        assert open_image(data).tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"big\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iCCP", b"no profile at all"),
        chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"tEXt", b"key\0" + bytes(3_000_000)),
        chunk(b"tIME", b"2020", damage=1),
        chunk(b"eXIf", b"no EXIF", damage=1),
        chunk(b"gAMA", b""),
        chunk(b"pHYs", b"1"),
        chunk(b"acTL", struct.pack(">II", 10_000, 0)) + chunk(b"fcTL", bytes(26)),
        chunk(b"vpAg", b"private"),
    ],
)
def test_a_png_survives_its_metadata(extra):
    data = encode(draw_pattern(0), "PNG")
    assert open_image(with_png_chunks(data, extra)).tobytes() == open_image(data).tobytes()


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE1, b"Exif\0\0" + b"\xff" * 300),
        segment(0xE2, b"ICC_PROFILE\0\1\5" + bytes(300)),
        segment(0xE2, b"MPF\0" + b"\xff" * 300),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 80),
        segment(0xFE, b"\xff\xda" * 20_000),  # looks like scans, is a comment
        segment(0xFE, b"") + bytes(3_000_000),
    ],
)
def test_a_jpeg_survives_its_metadata(extra):
    data = encode(draw_pattern(0), "JPEG", progressive=True)
    assert open_image(with_jpeg_segments(data, extra)).tobytes() == open_image(data).tobytes()
    appended = data + b"\xff\xda" * 2_000  # as the second picture of a photograph
    assert open_image(appended).tobytes() == open_image(data).tobytes()


def test_comments_of_a_gif_are_not_joined_one_by_one():
    data = encode(draw_pattern(0).convert("P"), "GIF", transparency=3)
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0"
    longer = data[:start] + comment + b"\0" + data[start:]
    assert len(strip_metadata(longer).data) == len(data)
    assert open_image(longer).tobytes() == open_image(data).tobytes()
    assert refusal(data[:start] + (b"!\xfe\1c\0") * 60_000 + data[start:]) == "image_too_complex"


def test_scans_of_a_jpeg_are_counted():
    data = encode(draw_pattern(0).convert("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    repeated = data[last:-2]
    assert open_image(data[:last] + repeated * 400 + data[-2:]).size == (160, 120)
    many = data[:last] + repeated * 600 + data[-2:]
    assert refusal(many) == "image_too_complex"
    hidden = data[:last] + repeated + segment(0xFE, b"\xff\xd9") + repeated * 600 + data[-2:]
    assert refusal(hidden) == "image_too_complex"
    assert refusal(many[:-2]) == "image_too_complex"  # without an end, too


def test_scans_count_by_the_pixels_they_walk_over(monkeypatch):
    data = encode(draw_pattern(0), "JPEG", progressive=True)
    num_scans = data.count(b"\xff\xda")
    monkeypatch.setattr(containers, "_MAX_SCANNED_PIXELS", num_scans * 160 * 120)
    check_image(data)
    monkeypatch.setattr(containers, "_MAX_SCANNED_PIXELS", num_scans * 160 * 120 - 1)
    assert refusal(data) == "image_too_complex"


def test_parts_of_a_file_are_counted():
    jpeg, png = (encode(draw_pattern(0), kind) for kind in ("JPEG", "PNG"))
    assert refusal(with_jpeg_segments(jpeg, b"\xff\xfe\0\2" * 100_001)) == "image_too_complex"
    assert refusal(png[:-12] + chunk(b"IDAT", b"") * 100_001 + png[-12:]) == "image_too_complex"


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    start = 14 + 40 + 1_024
    head = struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start)
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return head + about + bytes(range(256)) * 4 + body


def test_run_lengths_are_bounded():
    row = b"\x04\x05\0\0"
    assert open_image(run_length_bmp(4, 3, row * 3)).size == (4, 3)
    assert refusal(run_length_bmp(5_000, 5_000, row * 5_000)) == "image_too_complex"
    assert refusal(run_length_bmp(2_000, 2_000, b"\1\5" * 2_000_000)) == "image_too_complex"


def test_directories_cost_no_more_than_the_file():
    """As Pillow reads them, every entry would be held: 5,000 times 100 kB."""
    hostile = directory(5_000, 100_000)
    plain = noise((40, 30), "JPEG")
    in_segments = [
        segment(0xE1, b"Exif\0\0" + hostile[start : start + 60_000])
        for start in range(0, len(hostile), 60_000)
    ]
    entries = [(256, 40), (257, 30), (258, 8), (259, 1), (262, 1), (273, 100_000), (278, 30)]
    table = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries)
    tiff = bytearray(directory(5_000, 100_000) + bytes(1_200))
    tiff[10 : 10 + len(table)] = table
    tracemalloc.start()
    for data in (
        with_jpeg_segments(plain, *in_segments),
        with_png_chunks(noise((40, 30), "PNG"), chunk(b"eXIf", hostile)),
        bytes(tiff),
        encode(Image.new("RGB", (40, 30)), "WEBP", exif=b"Exif\0\0" + hostile),
    ):
        assert open_image(data).size == (40, 30)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000  # measured 2.6 MB
    tracemalloc.stop()


def test_directories_in_avif_are_added_up():
    data = encode(Image.new("RGB", (40, 30)), "AVIF")
    assert refusal(data + directory(100, 100_000)) == "image_too_complex"
    assert open_image(data + directory(5, 100_000)).size == (40, 30)


def test_strips_and_tiles_of_a_tiff_are_bounded():
    def tiff(*entries: tuple[int, int, int]) -> bytes:
        table = [(256, 1, 40), (257, 1, 30), (258, 1, 8), (262, 1, 1), *entries]
        packed = b"".join(struct.pack("<HHLL", tag, 4, *rest) for tag, *rest in sorted(table))
        return struct.pack("<2sHLH", b"II", 42, 8, len(table)) + packed + bytes(9_000)

    assert open_image(tiff((273, 1, 200), (278, 1, 30))).size == (40, 30)
    assert refusal(tiff((273, 200_001, 200), (278, 1, 1))) == "image_too_complex"
    assert refusal(tiff((322, 1, 60_000), (323, 1, 60_000), (324, 1, 200))) == "image_too_complex"


@pytest.mark.parametrize("kind", images.FORMATS)
def test_damage_anywhere_is_named(kind):
    """2 x 60 mutants a format; whatever becomes of them, both ways agree on it."""
    rng = np.random.default_rng(5)
    data = noise((60, 40), kind)
    for _ in range(60):
        mutant = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            mutant[place] = rng.integers(0, 256)
        for damaged in (bytes(mutant), bytes(mutant[: rng.integers(1, len(data))])):
            outcomes = []
            for look in (open_image, check_image):
                try:
                    found = look(damaged)
                    outcomes.append(found if isinstance(found, tuple) else found.size)
                except RejectedImage as error:
                    outcomes.append(error.reason.value)
            assert outcomes[0] == outcomes[1] or kind == "JPEG", outcomes


def test_what_cannot_be_read_is_named():
    for start, name in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"12345678", "31 32 33"),
    ):
        with pytest.raises(RejectedImage, match="image_undecodable") as caught:
            open_image(start)
        assert name in caught.value.detail
        assert "JPEG, PNG" in caught.value.detail
