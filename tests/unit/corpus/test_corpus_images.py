from __future__ import annotations

import io

import numpy as np
import pytest
from corpus_builders import bomb, noise, picture
from PIL import Image

from mm1_pipeline.config.ingest import WEB_IMAGE_RULES, ImageRules
from mm1_pipeline.corpus import images
from mm1_pipeline.corpus.images import RejectedImage, check_image, check_url, open_image

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes, rules: ImageRules = images.SAFE) -> str:
    found = set()
    for function in (open_image, check_image):
        with pytest.raises(RejectedImage) as caught:
            function(data, rules)
        found.add(caught.value.reason.value)
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_opens_as_rgb_and_checks_to_the_same_size(kind):
    data = noise((90, 70), kind)
    image = open_image(data)
    assert image.mode == "RGB"
    assert image.size == check_image(data) == (90, 70)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_file_is_refused(kind, share):
    data = noise((90, 70), kind)
    assert reason(data[: int(len(data) * share)]) in ("image_truncated", "image_undecodable")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_cut_file_is_called_truncated(kind):
    data = noise((90, 70), kind)
    assert reason(data[: len(data) * 3 // 4]) == "image_truncated"


def test_a_bomb_is_refused_without_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert reason(bomb()) == "image_too_many_pixels"  # above Pillow's own limit
    assert reason(bomb(10_001, 10_000)) == "image_too_many_pixels"  # only above ours
    assert reason(bomb(50, 50), ImageRules(max_pixels=2_499)) == "image_too_many_pixels"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "image_empty"),
        (b"no image at all", "image_undecodable"),
        (b"\xff\xd8\xff", "image_undecodable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_undecodable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_undecodable"),
    ],
)
def test_what_is_no_image_is_refused(data, expected):
    assert reason(data) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((99, 120), "image_too_small"),
        ((100, 201), "image_aspect_ratio"),
        ((201, 100), "image_aspect_ratio"),
        ((4_999, 10_001), "image_too_large"),
    ],
)
def test_the_rules_of_the_web(size, expected):
    assert reason(picture(size=size), WEB_IMAGE_RULES) == expected


def test_sizes_at_the_limits_pass():
    assert check_image(picture(size=(100, 200)), WEB_IMAGE_RULES) == (100, 200)
    data = picture()
    assert check_image(data, ImageRules(max_bytes=len(data))) == (120, 100)
    assert reason(data, ImageRules(max_bytes=len(data) - 1)) == "image_too_many_bytes"


def test_only_what_is_configured_applies():
    assert check_image(picture(size=(1, 300), kind="PNG")) == (1, 300)


def test_transparency_becomes_white():
    layer = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    layer.putpixel((0, 0), (255, 0, 0, 255))
    for image in (layer, layer.convert("P"), layer.convert("LA")):
        opened = open_image(encode(image))
        assert opened.getpixel((3, 3)) == (255, 255, 255), image.mode
        assert opened.getpixel((0, 0)) != (255, 255, 255), image.mode


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_known_beforehand(orientation):
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    opened = open_image(data)
    assert check_image(data) == opened.size == ((60, 30) if orientation < 5 else (30, 60))
    # The bright corner goes where EXIF's definition says: row 0 / column 0 of the stored image
    # is top-left, top-right, bottom-right, bottom-left, left-top, right-top, ...
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    bright = np.asarray(opened.convert("L")) > 200
    rows, columns = np.nonzero(bright)
    vertical = "t" if rows.mean() < opened.height / 2 else "b"
    horizontal = "l" if columns.mean() < opened.width / 2 else "r"
    assert vertical + horizontal == corners[orientation]


def test_sixteen_bit_greys_keep_their_range():
    pixels = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    opened = np.asarray(open_image(encode(Image.fromarray(pixels))))[..., 0].ravel()
    assert opened.tolist() == sorted(opened.tolist())
    assert len(set(opened.tolist())) == 256


def test_broken_exif_does_not_cost_the_image():
    data = picture(exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12")
    assert open_image(data).size == (120, 100)


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((5, 5)) == (255, 0, 0)


def test_furniture_is_known_by_its_url():
    for url in ("http://x/Logo.png", "http://x/a/buttons/b.png", "http://icon.example/photo.jpg"):
        with pytest.raises(RejectedImage):
            check_url(url, WEB_IMAGE_RULES)
    check_url("http://x/photo.jpg", WEB_IMAGE_RULES)
    check_url(None, WEB_IMAGE_RULES)
    check_url("http://x/logo.png", ImageRules())
