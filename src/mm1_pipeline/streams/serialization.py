r"""The one rule from segments to tokens, for training sequences and evaluation prompts alike.

A worked example with two tokens an image:

    segments   image, "A cat. ", image, "A dog."
    text       <bos> <img> <img> " A cat." "\n" <img> <img> " A dog." <eos>
    loss_mask    0     0     0      1       1     0     0       1        1

Rules: texts are stripped, and empty ones left out; a text after an image starts with one
space; a text after a text, and an image after a text, starts a new line; nothing stands
between two images. A few-shot prompt is thus the beginning of a document the model has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mm1_pipeline.streams.tokenizer import Tokenizer


class SegmentLike(Protocol):
    """What serialization reads of a record's segment."""

    @property
    def type(self) -> str:
        """`text` or `image`."""
        ...

    @property
    def text(self) -> str | None:
        """The text of a text segment."""
        ...

    @property
    def image(self) -> int | None:
        """The index of an image segment's image in its record."""
        ...


@dataclass(frozen=True, slots=True)
class TokenizedDocument:
    """A document as tokens.

    Attributes:
        input_ids: int32[n].
        loss_mask: bool[n], True where a token is worth predicting: text and EOS, never BOS
            or an image.
        images: Index of each image in its record, in order of appearance; image k owns the
            k-th run of image tokens, one sub-image's or several.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    images: list[int]


def serialize(
    segments: Iterable[SegmentLike],
    tokenizer: Tokenizer,
    image_tokens: int,
    *,
    num_sub_images: Sequence[int] | None = None,
    begin: bool = True,
    end: bool = True,
) -> TokenizedDocument:
    """Turns segments into tokens.

    Args:
        segments: Text and images in reading order.
        tokenizer: Encodes the text.
        image_tokens: Positions one sub-image takes.
        num_sub_images: Of each image, by its index (`streams.sub_images`); None is one each.
        begin: Whether BOS stands first.
        end: Whether EOS stands last; a prompt to be continued has none.

    Returns:
        The document; `images` holds each segment's `image`.

    Raises:
        ValueError: A segment is neither text nor image.
    """
    input_ids: list[int] = [tokenizer.bos_id] if begin else []
    loss_mask: list[bool] = [False] * len(input_ids)
    images: list[int] = []
    for part in join_texts(segments):
        if isinstance(part, str):
            ids = tokenizer.encode(part)
        else:
            ids = [tokenizer.image_id] * (
                image_tokens * (1 if num_sub_images is None else num_sub_images[part])
            )
            images.append(part)
        input_ids += ids
        loss_mask += [isinstance(part, str)] * len(ids)
    if end:
        input_ids.append(tokenizer.eos_id)
        loss_mask.append(True)
    return TokenizedDocument(
        np.array(input_ids, dtype=np.int32), np.array(loss_mask, dtype=np.bool_), images
    )


def join_texts(segments: Iterable[SegmentLike]) -> list[str | int]:
    """Joins neighbouring texts with their separators; images stay as their index."""
    parts: list[str | int] = []
    for segment in segments:
        last_is_text = bool(parts) and isinstance(parts[-1], str)
        if segment.type == "image":
            assert segment.image is not None, "an image segment names its image"
            if last_is_text:
                parts[-1] = f"{parts[-1]}\n"
            parts.append(segment.image)
        elif segment.type == "text":
            if not (text := (segment.text or "").strip()):
                continue
            if last_is_text:
                parts[-1] = f"{parts[-1]}\n{text}"
            else:
                parts.append(f" {text}" if parts else text)
        else:
            raise ValueError(
                f"Found a segment of type {segment.type!r}, expected 'text' or 'image'."
            )
    return parts
