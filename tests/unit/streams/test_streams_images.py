"""Pictures become the same pixels, and the same bytes, every time."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm1_pipeline.config.shard import ImageTransform, Resize
from mm1_pipeline.streams.images import (
    decode_image,
    encode_image,
    mean_colour,
    resize_image,
    to_pixel_values,
)


def transform(resize: Resize = Resize.PAD, **options: Any) -> ImageTransform:
    return ImageTransform(**{"size": 16, "encoding": "png", "resize": resize, **options})


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def test_padding_keeps_the_aspect_ratio() -> None:
    square = resize_image(halves(64, 32), transform(Resize.PAD))
    pixels = np.asarray(square)
    assert (pixels[:4] == mean_colour(transform())).all()
    assert (pixels[12:] == mean_colour(transform())).all()
    assert tuple(pixels[8, 1]) == (255, 0, 0)
    assert tuple(pixels[8, 14]) == (0, 0, 255)


def test_cropping_takes_the_centre() -> None:
    image = Image.new("RGB", (96, 32), "lime")
    image.paste((0, 0, 255), (32, 0, 64, 32))
    square = np.asarray(resize_image(image, transform(Resize.CROP)))
    assert (square[:, 2:-2] == (0, 0, 255)).all()
    # The same as scaling the whole picture and cutting its centre, as CLIP does.
    scaled = np.asarray(image.resize((48, 16), Image.Resampling.BICUBIC))
    assert (square == scaled[:, 16:32]).all()


def test_squashing_keeps_everything() -> None:
    square = np.asarray(resize_image(halves(128, 16), transform(Resize.SQUASH)))
    assert (square[:, :7] == (255, 0, 0)).all()
    assert (square[:, 9:] == (0, 0, 255)).all()


@pytest.mark.parametrize("resize", list(Resize))
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (16, 16), (17, 15)])
def test_every_shape_becomes_the_square(resize: Resize, size: tuple[int, int]) -> None:
    square = resize_image(Image.new("RGB", size, "red"), transform(resize))
    assert (square.size, square.mode) == ((16, 16), "RGB")


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_encoding_is_deterministic_and_drops_metadata(encoding: str) -> None:
    buffer = io.BytesIO()
    halves(40, 40).save(buffer, "PNG", icc_profile=b"a profile", dpi=(72, 72))
    with_metadata = Image.open(io.BytesIO(buffer.getvalue()))
    assert with_metadata.info
    options = transform(Resize.SQUASH, encoding=encoding)
    plain, other = (
        encode_image(resize_image(image.convert("RGB"), options), options)
        for image in (halves(40, 40), with_metadata)
    )
    assert plain == other
    decoded = np.asarray(decode_image(plain, options)).astype(int)
    square = np.asarray(resize_image(halves(40, 40), options)).astype(int)
    # PNG is exact; worst seen: JPEG 4, WebP 63 (it halves chroma at the red-blue border).
    assert np.abs(decoded - square).max() <= {"png": 0, "jpeg": 6, "webp": 80}[encoding]


def test_pixel_values_are_normalised() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    options = transform()
    found = to_pixel_values([Image.fromarray(image) for image in pixels], options)
    expected = (pixels / 255 - np.array(options.mean)) / np.array(options.std)
    assert found.shape == (3, 3, 16, 16)
    assert found.dtype == torch.float32
    # Worst seen 4e-7 (float32 against float64).
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, rtol=0, atol=2e-6)


def test_padding_is_nearly_zero_after_normalisation() -> None:
    options = transform()
    blank = Image.new("RGB", (16, 16), mean_colour(options))
    # Worst seen 0.006: the mean colour is rounded to whole steps of 1/255.
    assert to_pixel_values([blank], options).abs().max() < 0.01


def test_no_images_give_an_empty_tensor() -> None:
    assert to_pixel_values([], transform()).shape == (0, 3, 16, 16)


def test_images_of_another_size_are_refused() -> None:
    data = encode_image(Image.new("RGB", (8, 8)), transform())
    with pytest.raises(ValueError, match=r"8 x 8 pixels, expected 16 x 16"):
        decode_image(data, transform())
