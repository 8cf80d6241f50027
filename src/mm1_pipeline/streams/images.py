"""From a picture to pixel values, the same way in training and in evaluation.

Legend: N images, S side of the square.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mm1_pipeline.config.shard import ImageTransform, Resize

if TYPE_CHECKING:
    import torch


def resize_image(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """Makes an RGB image a square of the transform's size, by bicubic resampling.

    Args:
        image: RGB, any size.
        transform: Side and way of resizing.

    Returns:
        RGB, S x S, without metadata.
    """
    assert image.mode == "RGB", f"found mode {image.mode}; open images with open_image"
    match transform.resize:
        case Resize.SQUASH:
            square = image.resize((transform.size, transform.size), Image.Resampling.BICUBIC)
        case Resize.CROP:
            square = _crop(image, transform.size)
        case Resize.PAD:
            square = _pad(image, transform)
    # Colour profiles and comments would otherwise travel into the encoded bytes.
    square.info = {}
    return square


def encode_image(image: Image.Image, transform: ImageTransform) -> bytes:
    """Encodes a square image for the shards; equal pixels give equal bytes.

    Chroma is kept at full resolution in JPEG: at small sizes halving it blurs text and edges.
    """
    buffer = io.BytesIO()
    match transform.encoding:
        case "png":
            image.save(buffer, "PNG")
        case "jpeg":
            image.save(buffer, "JPEG", quality=transform.quality, subsampling=0)
        case "webp":
            image.save(buffer, "WEBP", quality=transform.quality, method=4)
    return buffer.getvalue()


def decode_image(data: bytes, transform: ImageTransform) -> Image.Image:
    """Decodes an image that `encode_image` wrote.

    Raises:
        ValueError: The image does not have the transform's size: the shards belong to
            another configuration.
    """
    image = Image.open(io.BytesIO(data))
    if image.size != (transform.size, transform.size):
        raise ValueError(
            f"Found a stored image of {image.size[0]} x {image.size[1]} pixels, expected "
            f"{transform.size} x {transform.size}; rebuild the shards with this image size."
        )
    return image.convert("RGB")


def to_pixel_values(images: Sequence[Image.Image], transform: ImageTransform) -> torch.Tensor:
    """Normalises square images to what the encoder reads.

    Args:
        images: N RGB images of S x S pixels.
        transform: Mean and standard deviation of each channel, in 0..1.

    Returns:
        float32[N, 3, S, S]; N may be 0.
    """
    import torch

    size = transform.size
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels[index] = np.asarray(image)
    scale = torch.tensor([1 / (255 * std) for std in transform.std])
    shift = torch.tensor(
        [-mean / std for mean, std in zip(transform.mean, transform.std, strict=True)]
    )
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float()
    return channels_first.mul_(scale[:, None, None]).add_(shift[:, None, None])


def mean_colour(transform: ImageTransform) -> tuple[int, int, int]:
    """The colour that becomes about 0 after normalisation; fills what padding adds."""
    red, green, blue = (round(255 * mean) for mean in transform.mean)
    return red, green, blue


def _crop(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def content_box(width: int, height: int, transform: ImageTransform) -> tuple[int, int, int, int]:
    """Where a padded image lies in its square: left, top, right and bottom in pixels.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels, upright.
        transform: its size and anchor.
    """
    size, longer = transform.size, max(width, height)
    fitted_width, fitted_height = (max(1, round(side * size / longer)) for side in (width, height))
    left, top = 0, 0
    if transform.anchor == "center":
        left, top = (size - fitted_width) // 2, (size - fitted_height) // 2
    return left, top, left + fitted_width, top + fitted_height


def _pad(image: Image.Image, transform: ImageTransform) -> Image.Image:
    left, top, right, bottom = content_box(*image.size, transform)
    square = Image.new("RGB", (transform.size, transform.size), mean_colour(transform))
    resized = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    square.paste(resized, (left, top))
    return square
