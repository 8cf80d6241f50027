"""Parameters of `shard`: records to fixed-length packed sequences on disk."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from mm1_pipeline.config._base import (
    Count,
    Pixels,
    Seed,
    Share,
    Workers,
    bounds,
    input_path,
    operational,
    parameters,
)

_Deviation = Annotated[float, bounds(gt=0, le=1)]


class Resize(StrEnum):
    """How an image becomes a square."""

    PAD = "pad"
    """Keeps the aspect ratio and fills the rest with the mean colour."""
    CROP = "crop"
    """Scales the shorter side and cuts the centre, as CLIP does."""
    SQUASH = "squash"
    """Scales both sides, ignoring the aspect ratio."""


@parameters
class ImageTransform:
    """How an encoded image becomes pixel values; the same in training and evaluation."""

    size: Pixels
    """Side of the square in pixels."""
    resize: Resize = Resize.PAD
    anchor: Literal["center", "top_left"] = "center"
    """Where a padded image lies in its square. At the top left, an image that is twice as wide
    as high fills whole crops of a grid instead of halves."""
    mean: tuple[Share, Share, Share] = (0.48145466, 0.4578275, 0.40821073)
    """CLIP's channel means, in 0..1."""
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.26862954, 0.26130258, 0.27577711)
    """CLIP's channel standard deviations, in 0..1."""
    encoding: Literal["png", "jpeg", "webp"] = "jpeg"
    """How the resized image is stored in the shards."""
    quality: Annotated[int, bounds(ge=1, le=100)] = 95
    """Quality of a lossy encoding, 1..100."""


@parameters
class SubImageConfig:
    """How a large image is shown by several sub-images; by default it is not.

    Source: MM1, SFT (grid 2 of 672 pixels is 1344; grid 2 of 896 is 1792).
    """

    grid: Annotated[int, bounds(ge=1, le=8)] = 1
    """n: crops along one side beside the overview; 1 shows the overview alone."""
    enlarge: bool = False
    """Decomposes images that fit the overview as well, which only enlarges them. The paper brings
    every image to one size; leaving small ones alone is our choice."""
    skip_empty: bool = False
    """Leaves out crops of nothing but padding. The paper has always n * n."""


@parameters
class TokenizerConfig:
    """Parameters of the byte-level BPE tokenizer: a group of its own, so that packing leaves it."""

    vocab_size: Annotated[int, bounds(ge=1, le=100_000_000)]
    """Upper bound on the vocabulary, special tokens included."""
    file: str | None = input_path(default=None)
    """A `tokenizer.json` to use instead of training one; or the folder of a published model, or a
    GGUF file, whose end of text then becomes ours."""
    max_characters: Count = 200_000_000
    """Training text above which the rest is left out (every source gets an equal share)."""
    min_frequency: Count = 2
    split_digits: bool = True
    """Makes every digit a token, so that a number is read and written digit by digit. Our choice,
    as Llama's and PaLM's tokenizers."""


@parameters
class PackingConfig:
    """How records become sequences of one fixed length.

    Source: MM1, Pre-training ("at most 16 images a sequence", attention never crosses
    documents). Best-fit packing is our choice.
    """

    sequence_length: Count = 4096
    """Positions in a sequence, image tokens included."""
    max_images: Count = 16
    """Images in a sequence."""
    image_tokens: Count = 144
    """Positions one image takes: the connector's `num_tokens`."""
    overflow: Literal["split", "truncate"] = "split"
    """What happens to the part of a document that does not fit: the next piece, or dropped."""
    window: Count = 2048
    """Pieces that best fit chooses from; more of them fill better and take more memory."""


@parameters
class ShardConfig:
    """Parameters of the stage `shard`."""

    packing: PackingConfig
    image: ImageTransform
    sub_images: SubImageConfig = SubImageConfig()
    validation_fraction: Annotated[float, bounds(ge=0, lt=1)] = 0.02
    """Share of each source's records held out, chosen by a hash of the record's key."""
    compression: str = "zstd:3"
    shard_bytes: Annotated[int, bounds(ge=1, le=2**32 - 1)] = 64 * 1024 * 1024
    """Size at which a shard file is closed, before compression."""
    partition_bytes: Count = 1_000_000_000
    """Text and stored images, roughly, that one process packs and writes as a unit: what is lost
    when a run is killed. Sequences never hold records of two partitions."""
    seed: Seed = 0
    num_workers: Workers = operational(default=1)
    """Processes that pack and write partitions."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"|zstd:([1-9]|1\d|2[0-2])", self.compression):
            raise ValueError(
                f"compression: found {self.compression!r}, expected 'zstd:1' to 'zstd:22', or '' "
                "for none."
            )
        if self.packing.image_tokens + 2 > self.packing.sequence_length:
            raise ValueError(
                f"packing.sequence_length: found {self.packing.sequence_length}, but one image "
                f"takes {self.packing.image_tokens} positions; make sequences longer or give the "
                "connector fewer tokens."
            )
        num_sub_images = 1 if self.sub_images.grid == 1 else 1 + self.sub_images.grid**2
        needed = num_sub_images * self.packing.image_tokens + 2
        if num_sub_images > self.packing.max_images or needed > self.packing.sequence_length:
            raise ValueError(
                f"sub_images.grid: found {self.sub_images.grid}, with which one image is "
                f"{num_sub_images} sub-images and takes {needed} positions, expected at most "
                f"packing.max_images ({self.packing.max_images}) and packing.sequence_length "
                f"({self.packing.sequence_length})."
            )


def shape_problems(
    name: str,
    packing: PackingConfig,
    image: ImageTransform,
    *,
    image_tokens: int | None,
    image_size: int | None,
) -> list[str]:
    """Where a model does not fit shards that are made, or were made, with some parameters.

    Args:
        name: Of the shards' parameters: `shard` or `sft_shard`.
        packing: Theirs.
        image: Theirs.
        image_tokens: Positions that the model's connector gives an image; None where it has none.
        image_size: Pixels of a side that its encoder takes; None where it has none.
    """
    pairs = (
        ("connector.num_tokens", image_tokens, "packing.image_tokens", packing.image_tokens),
        ("vision.image_size", image_size, "image.size", image.size),
    )
    return [
        f"model.{of_model}: found {found}, expected {expected}, which the shards have by "
        f"{name}.{of_shards}. Make the two equal; the shards have to be made again if theirs "
        "changes."
        for of_model, found, of_shards, expected in pairs
        if found is not None and found != expected
    ]
