"""Image tokens for prompts: each image is encoded once, however many prompts show it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import resize_image, to_pixel_values

MAX_CACHE_BYTES = 1 << 30
"""Image tokens kept: 1 GiB is 450 images of 144 tokens, 4,096 wide, in float32. Our choice."""

_IMAGES_TOGETHER = 32
_BLANK = ""


def encode_pixels(model: MM1, pixel_values: Tensor) -> Tensor:
    """Image tokens of normalised pixels.

    Args:
        model: Its encoder and connector are used.
        pixel_values: float32[N, 3, S, S].

    Returns:
        float[N, num_tokens, d_model].
    """
    return model.connector(model.vision(pixel_values))


class ImageFeatures:
    """Image tokens by the SHA-256 of the encoded image.

    Args:
        model: Its encoder and connector are used.
        images: Encoded images by SHA-256.
        transform: How they become pixels; the same as in training.
        blind: Blanks every image to the mean colour, which is 0 after normalisation. The
            encoder then runs once.
        max_bytes: Image tokens kept; those unused for longest make room.
    """

    def __init__(
        self,
        model: MM1,
        images: Mapping[str, bytes],
        transform: ImageTransform,
        *,
        blind: bool = False,
        max_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self._model = model
        self._images = images
        self._transform = transform
        self._blind = blind
        self._max_bytes = max_bytes
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self.num_encoded = 0
        """Images that went through the encoder so far."""

    def identity(self, key: str) -> str:
        """What the model sees of an image; equal for images that it cannot tell apart."""
        return _BLANK if self._blind else key

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Image tokens of some images, in order.

        Args:
            keys: SHA-256 of each image, one or more; repetitions are allowed.

        Returns:
            float[len(keys), num_tokens, d_model], on the model's device.
        """
        assert keys, "every prompt has an image"
        needed = list(dict.fromkeys(self.identity(key) for key in keys))
        found = {key: self._cache[key] for key in needed if key in self._cache}
        missing = [key for key in needed if key not in found]
        for start in range(0, len(missing), _IMAGES_TOGETHER):
            found |= self._encode(missing[start : start + _IMAGES_TOGETHER])
        self._keep({key: found[key] for key in needed})
        return torch.stack([found[self.identity(key)] for key in keys])

    def _encode(self, keys: Sequence[str]) -> dict[str, Tensor]:
        self.num_encoded += len(keys)
        device = next(self._model.parameters()).device
        tokens = encode_pixels(self._model, self._pixel_values(keys).to(device))
        # Copies, because a view would keep the whole batch in memory.
        return {key: image_tokens.clone() for key, image_tokens in zip(keys, tokens, strict=True)}

    def _pixel_values(self, keys: Sequence[str]) -> Tensor:
        if self._blind:
            return torch.zeros(len(keys), 3, self._transform.size, self._transform.size)
        opened = (open_image(self._images[key]) for key in keys)
        return to_pixel_values(
            [resize_image(image, self._transform) for image in opened], self._transform
        )

    def _keep(self, used: Mapping[str, Tensor]) -> None:
        for key, image_tokens in used.items():
            self._cache[key] = image_tokens
            self._cache.move_to_end(key)
        kept = sum(image_tokens.nbytes for image_tokens in self._cache.values())
        while kept > self._max_bytes and self._cache:
            kept -= self._cache.popitem(last=False)[1].nbytes
