"""Batches against a slow and obvious reading of the rules."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mm1_pipeline.streams.collation import collate, split_batch
from mm1_pipeline.streams.images import decode_image, to_pixel_values
from mm1_pipeline.streams.loader import read_sequences
from mm1_pipeline.streams.shard_index import ShardIndex


@pytest.fixture(scope="module")
def samples(shards_dir: Path) -> list[dict]:
    """Sequences of every kind, in an order that mixes them."""
    found = []
    for number, source in enumerate(("books", "pages", "pairs")):
        for index, sample in enumerate(read_sequences(shards_dir / source / "train")):
            if index < 5:
                found.append({**sample, "source": source, "stream_id": number})
    return found[::3] + found[1::3] + found[2::3]


@pytest.fixture(scope="module")
def batch(samples: list[dict], shards_dir: Path) -> dict:
    return collate(samples, ShardIndex.read(shards_dir).image)


def test_the_worked_example() -> None:
    sample = {
        "input_ids": np.array([1, 3, 3, 7, 2, 1, 8, 2, 0, 0], dtype=np.int32),
        "loss_mask": np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 0], dtype=np.uint8),
        "cu_seqlens": np.array([0, 5, 8, 10], dtype=np.int32),
        "images": b"",
        "image_offsets": np.array([0], dtype=np.int32),
        "keys": '["a", "b"]',
        "source": "s",
        "stream_id": 4,
    }
    from mm1_pipeline.config.shard import ImageTransform

    made = collate([sample], ImageTransform(size=16))
    no = -100
    assert made["labels"].tolist() == [[no, no, 7, 2, no, 8, 2, no, no, no]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1]]
    assert made["sample_keys"] == ["s: a, b"]
    assert made["stream_ids"].tolist() == [4]
    assert made["pixel_values"].shape == (0, 3, 16, 16)


def test_labels_and_positions_equal_a_slow_oracle(samples: list[dict], batch: dict) -> None:
    for row, sample in enumerate(samples):
        labels, positions = [], []
        for begin, end in pairwise(sample["cu_seqlens"].tolist()):
            for place in range(begin, end):
                positions.append(place - begin)
                follows = place + 1 < end and sample["loss_mask"][place + 1]
                labels.append(int(sample["input_ids"][place + 1]) if follows else -100)
        assert batch["labels"][row].tolist() == labels
        assert batch["position_ids"][row].tolist() == positions
        assert batch["input_ids"][row].tolist() == sample["input_ids"].tolist()


def test_borders_run_over_the_flattened_batch(samples: list[dict], batch: dict) -> None:
    expected = [0]
    for row, sample in enumerate(samples):
        expected += [row * 64 + int(border) for border in sample["cu_seqlens"][1:]]
    assert batch["cu_seqlens"].tolist() == expected
    assert batch["cu_seqlens"].dtype == torch.int32


def test_images_follow_their_sequences(samples: list[dict], batch: dict, shards_dir: Path) -> None:
    transform = ShardIndex.read(shards_dir).image
    expected = []
    for sample in samples:
        for begin, end in pairwise(sample["image_offsets"]):
            image = decode_image(sample["images"][begin:end], transform)
            expected.append(to_pixel_values([image], transform))
    assert torch.equal(batch["pixel_values"], torch.cat(expected))
    placeholders = (batch["input_ids"] == 3).sum(1)
    assert torch.equal(placeholders, batch["images_per_sequence"] * 4)


@pytest.mark.parametrize("microbatch_size", [1, 2, 4, 7, 15, 100])
def test_parts_are_what_their_rows_collate_to(
    samples: list[dict], batch: dict, shards_dir: Path, microbatch_size: int
) -> None:
    transform = ShardIndex.read(shards_dir).image
    parts = split_batch(batch, microbatch_size)
    starts = range(0, len(samples), microbatch_size)
    assert len(parts) == len(starts)
    for part, begin in zip(parts, starts, strict=True):
        expected = collate(samples[begin : begin + microbatch_size], transform)
        assert part.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(part[name], value), name
                assert part[name].dtype == value.dtype
            else:
                assert part[name] == value
