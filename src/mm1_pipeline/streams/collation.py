"""Packed sequences to one batch of tensors.

Legend: B sequences in the batch, T positions each, D documents and N images in all of them.
A worked example of one sequence with two documents and padding:

    input_ids      b  i  i  t  e | b  t  e | .  .
    loss_mask      0  0  0  1  1 | 0  1  1 | 0  0
    position_ids   0  1  2  3  4 | 0  1  2 | 0  1
    labels         .  .  t  e  . | t  e  . | .  .       ('.' is -100, nothing to predict)
    cu_seqlens     [0, 5, 8, 10]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.streams.images import decode_image, to_pixel_values

IGNORE_INDEX = -100
"""Label of a position that predicts nothing."""

Sample = Mapping[str, Any]
"""A packed sequence as it is stored (see `shards`), with `source` and `stream_id` added."""


def collate(samples: Sequence[Sample], transform: ImageTransform) -> dict[str, Any]:
    """Makes a batch of packed sequences.

    Args:
        samples: B sequences.
        transform: How their images were resized, and how pixels are normalised.

    Returns:
        input_ids: int64[B, T].
        labels: int64[B, T], the target at each position: the next token, where it belongs to
            the same document and is worth predicting, else -100.
        position_ids: int64[B, T], from 0 in each document.
        cu_seqlens: int32[D + 1], document borders over the B * T flattened positions; every
            row's border is one.
        pixel_values: float32[N, 3, S, S] in order of appearance; N may be 0.
        images_per_sequence: int64[B].
        stream_ids: int64[B], index of the stream in the mixture.
        sample_keys: B strings, source and record keys, for messages.
    """
    input_ids = np.stack([sample["input_ids"] for sample in samples]).astype(np.int64)
    loss_mask = np.stack([sample["loss_mask"] for sample in samples]).astype(np.bool_)
    cu_seqlens = _join_borders([sample["cu_seqlens"] for sample in samples], input_ids.shape[1])
    images = [image for sample in samples for image in _split_images(sample)]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(_labels(input_ids, loss_mask, cu_seqlens)),
        "position_ids": torch.from_numpy(_position_ids(cu_seqlens).reshape(input_ids.shape)),
        "cu_seqlens": torch.from_numpy(cu_seqlens),
        "pixel_values": to_pixel_values(
            [decode_image(image, transform) for image in images], transform
        ),
        "images_per_sequence": torch.tensor(
            [len(sample["image_offsets"]) - 1 for sample in samples], dtype=torch.int64
        ),
        "stream_ids": torch.tensor([sample["stream_id"] for sample in samples], dtype=torch.int64),
        "sample_keys": [_sample_key(sample) for sample in samples],
    }


def split_batch(batch: Mapping[str, Any], microbatch_size: int) -> list[dict[str, Any]]:
    """Splits a batch by rows; each part is what `collate` would make of these rows.

    Args:
        batch: From `collate`.
        microbatch_size: Rows of a part; the last may have fewer.

    Returns:
        The parts in order.
    """
    num_rows, length = batch["input_ids"].shape
    first_images = torch.cumsum(batch["images_per_sequence"], 0) - batch["images_per_sequence"]
    num_images = len(batch["pixel_values"])
    parts = []
    for begin in range(0, num_rows, microbatch_size):
        end = min(begin + microbatch_size, num_rows)
        first = int(first_images[begin])
        last = int(first_images[end]) if end < num_rows else num_images
        parts.append(
            {
                **{name: batch[name][begin:end] for name in _BY_ROW},
                "cu_seqlens": _borders_between(batch["cu_seqlens"], begin * length, end * length),
                "pixel_values": batch["pixel_values"][first:last],
            }
        )
    return parts


_BY_ROW = (
    "input_ids",
    "labels",
    "position_ids",
    "images_per_sequence",
    "stream_ids",
    "sample_keys",
)


def _join_borders(borders: Sequence[NDArray[np.int32]], length: int) -> NDArray[np.int32]:
    for border in borders:
        assert border[0] == 0, border
        assert border[-1] == length, border
    shifted = [border[:-1] + row * length for row, border in enumerate(borders)]
    return np.concatenate([*shifted, [len(borders) * length]]).astype(np.int32)


def _position_ids(cu_seqlens: NDArray[np.int32]) -> NDArray[np.int64]:
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return np.arange(cu_seqlens[-1], dtype=np.int64) - starts


def _labels(
    input_ids: NDArray[np.int64], loss_mask: NDArray[np.bool_], cu_seqlens: NDArray[np.int32]
) -> NDArray[np.int64]:
    targets = np.where(loss_mask, input_ids, IGNORE_INDEX).reshape(-1)
    targets[cu_seqlens[:-1]] = IGNORE_INDEX  # nothing before a document predicts its start
    return np.append(targets[1:], IGNORE_INDEX).reshape(input_ids.shape)


def _borders_between(cu_seqlens: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    return cu_seqlens[(cu_seqlens >= begin) & (cu_seqlens <= end)] - begin


def _split_images(sample: Sample) -> list[bytes]:
    offsets = sample["image_offsets"].tolist()
    return [sample["images"][begin:end] for begin, end in itertools.pairwise(offsets)]


def _sample_key(sample: Sample) -> str:
    return f"{sample['source']}: {', '.join(json.loads(sample['keys']))}"
