"""The squares of a record's images as the shards hold them; runs in worker processes."""

from __future__ import annotations

from collections.abc import Sequence

from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.streams.images import encode_image
from mm1_pipeline.streams.sub_images import decompose


def prepare_tiles(
    encoded: Sequence[bytes], transform: ImageTransform, sub_images: SubImageConfig
) -> list[list[bytes]]:
    """Opens, decomposes and encodes the images of one record for the shards."""
    opened = (open_image(data) for data in encoded)
    return [
        [encode_image(square, transform) for square in decompose(image, transform, sub_images)]
        for image in opened
    ]
