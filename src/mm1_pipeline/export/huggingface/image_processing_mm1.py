"""Pictures to pixel values, the same way as in training."""

# pyright: reportIncompatibleMethodOverride=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.export.huggingface.parameters import build
from mm1_pipeline.streams.images import to_pixel_values
from mm1_pipeline.streams.sub_images import decompose


class MM1ImageProcessor(BaseImageProcessor):
    """Makes each image squares of the encoder's size (one, or an overview and crops).

    Args:
        transform: the fields of `ImageTransform`.
        sub_images: the fields of `SubImageConfig`.
        **kwargs: what transformers keeps in every processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  the name that transformers reads

    def __init__(
        self,
        transform: dict[str, Any] | None = None,
        sub_images: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transform = transform
        self.sub_images = sub_images

    def preprocess(self, images: Any, **_: Any) -> BatchFeature:
        """Pixel values of some images.

        Args:
            images: a PIL image, or (nested) lists of them.

        Returns:
            pixel_values float32[N, 3, S, S], the squares of all images; num_tiles int64[images],
            squares of each.
        """
        assert self.transform is not None, "preprocessor_config.json has no transform"
        transform = build(ImageTransform, self.transform)
        sub_images = build(SubImageConfig, self.sub_images or {})
        tiles = [decompose(image.convert("RGB"), transform, sub_images) for image in _flat(images)]
        squares = [square for each in tiles for square in each]
        num_tiles = torch.tensor([len(each) for each in tiles], dtype=torch.int64)
        return BatchFeature(
            {"pixel_values": to_pixel_values(squares, transform), "num_tiles": num_tiles}
        )

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)


def _flat(images: Any) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [images]
    return [image for group in images for image in _flat(group)]
