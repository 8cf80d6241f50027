"""Tiling is exact: the crops put together are the image, at the places that they claim."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config.shard import (
    ImageTransform,
    PackingConfig,
    Resize,
    ShardConfig,
    SubImageConfig,
)
from mm1_pipeline.streams.images import mean_colour, resize_image
from mm1_pipeline.streams.partition_writer import encode_sub_images
from mm1_pipeline.streams.sub_images import (
    canvas_transform,
    count_sub_images,
    crop_boxes,
    decompose,
)

TRANSFORM = ImageTransform(size=8, encoding="png")
GRID = SubImageConfig(grid=2)


def numbered(width: int, height: int) -> Image.Image:
    """An image whose pixel at (x, y) is (x, y, 7): it tells where it comes from."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns, rows, np.full_like(rows, 7)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def reassemble(crops: list[Image.Image], grid: int, size: int) -> np.ndarray:
    rows = [
        np.concatenate([np.asarray(crop) for crop in crops[row * grid : (row + 1) * grid]], axis=1)
        for row in range(grid)
    ]
    assert all(crop.size == (size, size) for crop in crops)
    return np.concatenate(rows)


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_the_crops_of_an_image_of_the_canvas_size_are_its_pixels(grid: int) -> None:
    image = numbered(8 * grid, 8 * grid)
    overview, *crops = decompose(image, TRANSFORM, SubImageConfig(grid=grid))
    np.testing.assert_array_equal(reassemble(crops, grid, 8), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(overview), np.asarray(resize_image(image, TRANSFORM)))
    for place, crop in enumerate(crops):
        row, column = divmod(place, grid)
        assert crop.getpixel((0, 0)) == (8 * column, 8 * row, 7)
        assert crop.getpixel((7, 7)) == (8 * column + 7, 8 * row + 7, 7)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(2, 4),
    st.sampled_from(Resize),
    st.sampled_from(["center", "top_left"]),
    st.booleans(),
)
def test_the_crops_are_the_canvas(width, height, grid, resize, anchor, skip_empty) -> None:
    transform = replace(TRANSFORM, resize=resize, anchor=anchor)
    whole = SubImageConfig(grid=grid, enlarge=True)
    image = numbered(width, height)
    canvas = np.asarray(resize_image(image, canvas_transform(transform, whole)))
    _, *crops = decompose(image, transform, whole)
    np.testing.assert_array_equal(reassemble(crops, grid, 8), canvas)
    sparing = replace(whole, skip_empty=skip_empty)
    boxes = crop_boxes(width, height, transform, sparing)
    assert count_sub_images(width, height, transform, sparing) == 1 + len(boxes)
    # What is left out shows nothing: the rest of the canvas is the padding's one colour.
    rest = canvas.copy()
    for left, top, right, bottom in boxes:
        rest[top:bottom, left:right] = mean_colour(transform)
    assert (rest == mean_colour(transform)).all()


def test_aspect_ratio_is_kept_by_padding_and_given_up_by_squashing() -> None:
    wide = Image.new("RGB", (40, 10), (255, 0, 0))
    padded = replace(TRANSFORM, anchor="top_left")
    overview, first, second, third, fourth = decompose(wide, padded, GRID)
    red = [
        (np.asarray(square) == (255, 0, 0)).all(axis=-1).sum()
        for square in (overview, first, second, third, fourth)
    ]
    assert red == [8 * 2, 8 * 4, 8 * 4, 0, 0]
    squashed = decompose(wide, replace(TRANSFORM, resize=Resize.SQUASH), GRID)
    assert all((np.asarray(square) == (255, 0, 0)).all() for square in squashed)


def test_empty_crops_may_be_left_out() -> None:
    sparing = replace(GRID, skip_empty=True)
    top_left = replace(TRANSFORM, anchor="top_left")
    assert count_sub_images(40, 10, top_left, sparing) == 3
    assert count_sub_images(40, 10, TRANSFORM, sparing) == 5, "in the centre it lies in all four"
    assert count_sub_images(10, 40, top_left, sparing) == 3
    assert crop_boxes(40, 10, top_left, sparing) == [(0, 0, 8, 8), (8, 0, 16, 8)]


def test_an_image_that_fits_the_overview_is_shown_by_it_alone() -> None:
    assert count_sub_images(8, 5, TRANSFORM, GRID) == 1
    assert count_sub_images(9, 5, TRANSFORM, GRID) == 5
    assert count_sub_images(8, 5, TRANSFORM, replace(GRID, enlarge=True)) == 5
    assert count_sub_images(800, 500, TRANSFORM, SubImageConfig()) == 1


@pytest.mark.parametrize(
    ("side", "resolution", "grid", "tokens"), [(672, 1344, 2, 720), (896, 1792, 2, 720)]
)
def test_the_papers_resolutions(side: int, resolution: int, grid: int, tokens: int) -> None:
    transform, sub_images = ImageTransform(size=side), SubImageConfig(grid=grid, enlarge=True)
    assert canvas_transform(transform, sub_images).size == resolution
    for width, height in ((4000, 3000), (100, 100)):
        assert 144 * count_sub_images(width, height, transform, sub_images) == tokens


def test_records_get_their_squares_in_order() -> None:
    encoded = []
    for size in ((16, 16), (5, 5)):
        buffer = io.BytesIO()
        numbered(*size).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    num_sub_images = encode_sub_images(encoded, TRANSFORM, GRID)
    assert [len(sub_images) for sub_images in num_sub_images] == [5, 1]
    last = Image.open(io.BytesIO(num_sub_images[0][4]))
    assert last.getpixel((0, 0)) == (8, 8, 7)


def test_a_grid_that_no_sequence_holds_is_refused() -> None:
    def config(**packing: int) -> ShardConfig:
        raw = {"packing": packing, "image": {"size": 8}, "sub_images": {"grid": 2}}
        return TypeAdapter(ShardConfig).validate_python(raw)

    fits = config(sequence_length=22, max_images=5, image_tokens=4)
    assert fits.packing == PackingConfig(sequence_length=22, max_images=5, image_tokens=4)
    for packing in ({"sequence_length": 21, "max_images": 5}, {"max_images": 4}):
        with pytest.raises(ValidationError, match="one image is 5 sub-images and takes 22"):
            config(image_tokens=4, **packing)
    with pytest.raises(ValidationError, match=r"grid: found 0"):
        SubImageConfig(grid=0)
