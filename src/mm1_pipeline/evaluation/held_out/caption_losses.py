"""What an image adds to its caption: the caption's loss with three images.

Each caption is read with its own image, with a blank one (the mean colour) and with another
caption's image. A model that uses its images pays for the wrong ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.evaluation.scoring.statistics import paired_interval
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.tokenizer import Tokenizer

DIGITS = 6
"""Decimals of a reported loss."""

# Not the parameter `batch_size`, which is operational and so must not touch any digit.
_CAPTIONS_TOGETHER = 32


@dataclass(frozen=True)
class CaptionDocument:
    """One image with its caption, as training reads it.

    Attributes:
        input_ids: int64[n].
        labels: int64[n], the token to predict at each position, or -100.
        pixel_values: float32[3, S, S], normalised.
        image: Digest of the pixels.
    """

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor
    image: str


@dataclass(frozen=True)
class CaptionLosses:
    """Mean loss of each caption's tokens with the right, a blank and another image.

    Attributes:
        right: float64[n].
        blank: float64[n].
        shuffled: float64[n].
        images: Digest of each caption's image; captions of one image are resampled together.
    """

    right: np.ndarray
    blank: np.ndarray
    shuffled: np.ndarray
    images: tuple[str, ...]

    @classmethod
    def joined(cls, parts: Sequence[CaptionLosses]) -> CaptionLosses:
        """The captions of several sets as one."""
        return cls(
            np.concatenate([part.right for part in parts]),
            np.concatenate([part.blank for part in parts]),
            np.concatenate([part.shuffled for part in parts]),
            tuple(image for part in parts for image in part.images),
        )

    def summary(self, num_samples: int, seed: int) -> dict[str, Any]:
        """Means over captions, and paired differences with their 95 % intervals.

        Args:
            num_samples: Bootstrap resamples.
            seed: Same seed, same resamples.

        Returns:
            {"n", "right", "blank", "shuffled", "blank_minus_right": {"mean", "low", "high"},
            "shuffled_minus_right": the same}.
        """
        return {
            "n": len(self.images),
            "right": round(float(self.right.mean()), DIGITS),
            "blank": round(float(self.blank.mean()), DIGITS),
            "shuffled": round(float(self.shuffled.mean()), DIGITS),
            "blank_minus_right": self._difference(self.blank, num_samples, seed),
            "shuffled_minus_right": self._difference(self.shuffled, num_samples, seed),
        }

    def _difference(self, wrong: np.ndarray, num_samples: int, seed: int) -> dict[str, float]:
        interval = paired_interval(wrong, self.right, num_samples, seed, self.images)
        return {name: round(value, DIGITS) for name, value in interval._asdict().items()}


@torch.inference_mode()
def caption_losses(
    model: MM1, documents: Sequence[CaptionDocument], seed: int
) -> CaptionLosses | None:
    """Loss of each caption with three images.

    Args:
        model: In evaluation mode.
        documents: Captions; several may be of one image.
        seed: Decides which other image each caption gets.

    Returns:
        The losses, or None if there are no two different images.
    """
    images = tuple(document.image for document in documents)
    others = other_images(images, seed)
    if others is None:
        return None
    right = [document.pixel_values for document in documents]
    return CaptionLosses(
        right=_mean_losses(model, documents, right),
        blank=_mean_losses(model, documents, [torch.zeros_like(right[0])] * len(right)),
        shuffled=_mean_losses(model, documents, [right[other] for other in others]),
        images=images,
    )


def other_images(images: Sequence[str], seed: int) -> list[int] | None:
    """For each caption, the index of a caption of another image.

    Captions stand in a shuffled circle; each takes the image of the next one that differs.

    Args:
        images: Digest of each caption's image.
        seed: Same seed, same circle.

    Returns:
        An index a caption, or None if there are no two different images.
    """
    if len(set(images)) < 2:
        return None
    circle = np.random.default_rng(seed).permutation(len(images)).tolist()
    others = [0] * len(images)
    for place, index in enumerate(circle):
        place += 1
        while images[circle[place % len(circle)]] == images[index]:
            place += 1
        others[index] = circle[place % len(circle)]
    return others


def caption_documents(batch: Mapping[str, Any], index: ShardIndex) -> Iterator[CaptionDocument]:
    """The documents of a collated batch that have one image and something to predict.

    The rest of a caption that packing had to cut has no image, and is left out.
    """
    input_ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
    num_seen = 0
    for begin, end in pairwise(batch["cu_seqlens"].tolist()):
        ids, targets = input_ids[begin:end].clone(), labels[begin:end].clone()
        num_placeholders = int((ids == index.special_ids["image"]).sum())
        num_images = num_placeholders // index.packing.image_tokens
        pixel_values = batch["pixel_values"][num_seen : num_seen + num_images]
        num_seen += num_images
        if num_images == 1 and bool((targets != IGNORED).any()):
            yield _document(ids, targets, pixel_values[0].clone())


def caption_document(
    data: bytes, caption: str, tokenizer: Tokenizer, index: ShardIndex
) -> CaptionDocument:
    """An image and its caption as training would have read them.

    Args:
        data: The encoded image.
        caption: Its text.
        tokenizer: Encodes the text.
        index: `shards.json`: image tokens, image transform, and the length at which a document
            is cut.
    """
    segments = [Segment.of_image(0), Segment.of_text(caption)]
    tokens = serialize(segments, tokenizer, index.packing.image_tokens)
    length = index.packing.sequence_length
    input_ids = torch.from_numpy(tokens.input_ids.astype(np.int64))[:length]
    targets = torch.where(torch.from_numpy(tokens.loss_mask)[:length], input_ids, IGNORED)
    pixel_values = to_pixel_values([resize_image(open_image(data), index.image)], index.image)[0]
    return _document(
        input_ids, torch.cat([targets[1:], targets.new_tensor([IGNORED])]), pixel_values
    )


def token_losses(model: MM1, batch: Mapping[str, Any]) -> Tensor:
    """Loss of every position of a collated batch; float32[B, T], on the model's device."""
    device = next(model.parameters()).device
    names = ("input_ids", "position_ids", "cu_seqlens", "pixel_values", "labels")
    return model.token_losses(*(batch[name].to(device) for name in names))


def _document(input_ids: Tensor, labels: Tensor, pixel_values: Tensor) -> CaptionDocument:
    digest = hashlib.sha256(pixel_values.numpy().tobytes()).hexdigest()
    return CaptionDocument(input_ids, labels, pixel_values, digest)


def _mean_losses(
    model: MM1, documents: Sequence[CaptionDocument], pixel_values: Sequence[Tensor]
) -> np.ndarray:
    """Mean loss of each document's labelled tokens; float64[len(documents)]."""
    means = []
    for start in range(0, len(documents), _CAPTIONS_TOGETHER):
        part = documents[start : start + _CAPTIONS_TOGETHER]
        batch = _side_by_side(part, pixel_values[start : start + _CAPTIONS_TOGETHER])
        losses = token_losses(model, batch).flatten().cpu().double()
        by_document = losses.split([len(document.input_ids) for document in part])
        means += [
            float(total.sum()) / int((document.labels != IGNORED).sum())
            for total, document in zip(by_document, part, strict=True)
        ]
    return np.array(means)


def _side_by_side(
    documents: Sequence[CaptionDocument], pixel_values: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Documents packed into one row, as `collate` packs them."""
    lengths = [len(document.input_ids) for document in documents]
    return {
        "input_ids": torch.cat([document.input_ids for document in documents]).unsqueeze(0),
        "labels": torch.cat([document.labels for document in documents]).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "pixel_values": torch.stack(list(pixel_values)),
    }
