r"""Sub-image decomposition: a large image as one overview and n x n crops, for one small encoder.

A worked example: an image of 200 x 100 pixels, squares of S = 64, grid 2, padding in the centre.

    canvas 128 x 128         overview 64 x 64      crops 64 x 64, in reading order
    +--------------+         +------+              +------+ +------+
    |   padding    |         | pad. |              |  1   | |  2   |
    | 128 x 64 img |   ->    |64x32 |      and     +------+ +------+
    |   padding    |         | pad. |              |  3   | |  4   |
    +--------------+         +------+              +------+ +------+

All of them become image tokens like any image: first the overview's, then each crop's. The
crops are the canvas, cut without overlap and without loss. An image that fits the overview's
square is shown by the overview alone unless `enlarge` is set, so one sequence may hold images
of both kinds; a few-shot prompt chooses for each shot (`evaluation`).

Source: MM1, SFT (1344 pixels as one view of 672 and four crops of 672: 5 x 144 tokens).
"""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from mm1_pipeline.config.shard import ImageTransform, Resize, SubImageConfig
from mm1_pipeline.streams.images import content_box, resize_image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def crop_boxes(
    width: int, height: int, transform: ImageTransform, sub_images: SubImageConfig
) -> list[Box]:
    """Where the crops of an image lie on its canvas, in reading order.

    Args:
        width: of the image, in pixels, upright.
        height: of the image, in pixels, upright.
        transform: gives S and the way in which the image becomes a square.
        sub_images: n crops along a side, and which are left out.

    Returns:
        n * n boxes of S x S pixels; fewer where empty ones are left out, none for an image
        that the overview shows in full.
    """
    size, grid = transform.size, sub_images.grid
    fits = max(width, height) <= size
    if grid == 1 or (fits and not sub_images.enlarge):
        return []
    corners = ((column * size, row * size) for row in range(grid) for column in range(grid))
    boxes = [(left, top, left + size, top + size) for left, top in corners]
    if not sub_images.skip_empty or transform.resize != Resize.PAD:
        return boxes
    content = content_box(width, height, canvas_transform(transform, sub_images))
    return [box for box in boxes if _overlap(box, content)]


def count_sub_images(
    width: int, height: int, transform: ImageTransform, sub_images: SubImageConfig
) -> int:
    """Sub-images an image: the overview and its crops; see `crop_boxes`."""
    return 1 + len(crop_boxes(width, height, transform, sub_images))


def canvas_transform(transform: ImageTransform, sub_images: SubImageConfig) -> ImageTransform:
    """How an image becomes the canvas: as the overview, but n times as large."""
    return replace(transform, size=transform.size * sub_images.grid)


def decompose(
    image: Image.Image, transform: ImageTransform, sub_images: SubImageConfig
) -> list[Image.Image]:
    """The sub-images of an image.

    Args:
        image: RGB, any size.
        transform: gives S, and how the image becomes a square.
        sub_images: n crops along a side, and which are left out.

    Returns:
        The overview and the crops in reading order, each S x S.
    """
    overview = resize_image(image, transform)
    boxes = crop_boxes(*image.size, transform, sub_images)
    if not boxes:
        return [overview]
    canvas = resize_image(image, canvas_transform(transform, sub_images))
    return [overview, *(canvas.crop(box) for box in boxes)]


def _overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )
