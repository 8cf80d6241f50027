"""Image tokens for prompts: each image is encoded once, however many prompts show it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.ground.rejects import Reason, Rejected
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import to_pixel_values
from mm1_pipeline.streams.sub_images import decompose

MAX_CACHE_BYTES = 1 << 30
"""Image tokens kept: 1 GiB is 450 images of 144 tokens, 4,096 wide, in float32. Our choice."""

WHOLE = SubImageConfig()
"""One sub-image an image."""

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

    Images are encoded in blocks of fixed members (see `expect`), so an image's tokens do not
    depend on what else was needed, was cached, or was done before a run was killed.

    Args:
        model: Its encoder and connector are used.
        images: Encoded images by SHA-256.
        transform: How they become pixels; the same as in training.
        sub_images: Which sub-images show a large image; see `resolution.sub_image_keys`.
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
        sub_images: SubImageConfig = WHOLE,
        blind: bool = False,
        max_bytes: int = MAX_CACHE_BYTES,
    ) -> None:
        self._model = model
        self._images = images
        self._transform = transform
        self._sub_images = sub_images
        self._opened: tuple[str, list[Image.Image]] = ("", [])
        self._blind = blind
        self._max_bytes = max_bytes
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._block: dict[str, tuple[str, ...]] = {}
        self._failures: dict[str, str] = {}
        self.num_encoded = 0
        """Images that went through the encoder so far."""

    def identity(self, key: str) -> str:
        """What the model sees of an image; equal for images that it cannot tell apart."""
        return _BLANK if self._blind else key

    def expect(self, keys: Iterable[str]) -> None:
        """Announces images in the order of their use; neighbours are encoded together.

        An image that was not announced is encoded alone.

        Args:
            keys: SHA-256 of each image; repetitions are allowed.
        """
        new = [key for key in dict.fromkeys(map(self.identity, keys)) if key not in self._block]
        for start in range(0, len(new), _IMAGES_TOGETHER):
            block = tuple(new[start : start + _IMAGES_TOGETHER])
            self._block |= dict.fromkeys(block, block)

    def failure(self, keys: Sequence[str]) -> str | None:
        """Why some of these images cannot be shown; None if all can."""
        for key in dict.fromkeys(map(self.identity, keys)):
            if key not in self._cache and key not in self._failures:
                self._encode(key)
            if key in self._failures:
                return f"image {key[:12]}: {self._failures[key]}"
        return None

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Image tokens of some images, in order.

        Args:
            keys: SHA-256 of each image, one or more; repetitions are allowed.

        Returns:
            float[len(keys), num_tokens, d_model], on the model's device.

        Raises:
            ValueError: An image cannot be read; `failure` tells before.
        """
        assert keys, "every prompt has an image"
        found: dict[str, Tensor] = {}
        for key in dict.fromkeys(map(self.identity, keys)):
            if key not in self._cache:
                self._encode(key)
            if key in self._failures:
                raise ValueError(f"Image {key[:12]}: {self._failures[key]}.")
            self._cache.move_to_end(key)
            found[key] = self._cache[key]
        return torch.stack([found[self.identity(key)] for key in keys])

    def _encode(self, key: str) -> None:
        """Encodes the block that an image belongs to."""
        pixels = {
            member: pixel_values
            for member in self._block.get(key, (key,))
            if (pixel_values := self._pixel_values(member)) is not None
        }
        if not pixels:
            return
        self.num_encoded += len(pixels)
        weight = next(self._model.parameters())
        batch = torch.cat(list(pixels.values())).to(weight)
        tokens = encode_pixels(self._model, batch)
        for member, image_tokens in zip(pixels, tokens, strict=True):
            # Copies, because a view would keep the whole batch in memory.
            self._cache[member] = image_tokens.clone()
        if key in self._cache:
            self._cache.move_to_end(key)
        kept = sum(image_tokens.nbytes for image_tokens in self._cache.values())
        while kept > self._max_bytes and len(self._cache) > 1:
            kept -= self._cache.popitem(last=False)[1].nbytes

    def _pixel_values(self, key: str) -> Tensor | None:
        """float32[1, 3, S, S], or None with the reason kept."""
        if self._blind:
            return torch.zeros(1, 3, self._transform.size, self._transform.size)
        if key in self._failures:
            return None
        try:
            sub_image = self._sub_image(key)
        except Rejected as error:
            self._failures[key] = str(error)
            return None
        return to_pixel_values([sub_image], self._transform)

    def _sub_image(self, key: str) -> Image.Image:
        """One sub-image of an image; neighbours are often of the same, which is kept open."""
        image, _, place = key.partition("/")
        if image not in self._images:
            raise Rejected(Reason.IMAGE_MISSING, "found no such image in the task's records")
        if self._opened[0] != image:
            sub_images = decompose(
                open_image(self._images[image]), self._transform, self._sub_images
            )
            self._opened = (image, sub_images)
        return self._opened[1][int(place or 0)]
