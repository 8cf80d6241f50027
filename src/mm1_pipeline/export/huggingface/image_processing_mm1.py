"""Pictures to pixel values, the same way as in training."""

# pyright: reportIncompatibleMethodOverride=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.export.huggingface.parameters import build
from mm1_pipeline.streams.images import resize_image, to_pixel_values


class MM1ImageProcessor(BaseImageProcessor):
    """Makes each image a square of the encoder's size and normalises it.

    Args:
        transform: the fields of `ImageTransform`.
        **kwargs: what transformers keeps in every processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  the name that transformers reads

    def __init__(self, transform: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transform = transform

    def preprocess(self, images: Any, **_: Any) -> BatchFeature:
        """Pixel values of some images.

        Args:
            images: a PIL image, or (nested) lists of them.

        Returns:
            pixel_values float32[N, 3, S, S].
        """
        assert self.transform is not None, "preprocessor_config.json has no transform"
        transform = build(ImageTransform, self.transform)
        squares = [resize_image(image.convert("RGB"), transform) for image in _flat(images)]
        return BatchFeature({"pixel_values": to_pixel_values(squares, transform)})

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)


def _flat(images: Any) -> list[Image.Image]:
    if isinstance(images, Image.Image):
        return [images]
    return [image for group in images for image in _flat(group)]
