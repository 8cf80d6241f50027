"""A tiny model and packed batches for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig

BOS, EOS, IMAGE = 1, 2, 3
NUM_TOKENS = 4

Document = list[int]
"""Token ids; a placeholder run of NUM_TOKENS is one image."""


@pytest.fixture(scope="session")
def tiny_config() -> MM1Config:
    return MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=4, d_model=32, num_layers=2, num_heads=2, d_ff=48
        ),
        connector=ConnectorConfig(num_tokens=NUM_TOKENS, num_blocks=1, num_heads=4),
        decoder=DecoderConfig(
            vocab_size=64, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=48
        ),
    )


@pytest.fixture(scope="session")
def make_document() -> Callable[..., Document]:
    """A document of some images, each followed by some random words."""

    def make(num_words: int, num_images: int, generator: torch.Generator) -> Document:
        def words(count: int) -> list[int]:
            return torch.randint(4, 64, (count,), generator=generator).tolist()

        images = [token for _ in range(num_images) for token in [IMAGE] * NUM_TOKENS + words(1)]
        return [BOS, *images, *words(num_words), EOS]

    return make


@pytest.fixture(scope="session")
def pack() -> Callable[..., dict[str, Tensor]]:
    """Packs documents into rows; written apart from the project's own collation."""

    def pack_rows(
        rows: Sequence[Sequence[Document]], pixel_values: Tensor, pad_to: int | None = None
    ) -> dict[str, Tensor]:
        length = pad_to or max(sum(map(len, row)) for row in rows)
        batch: dict[str, list[Any]] = {"input_ids": [], "position_ids": [], "labels": []}
        borders = [0]
        for row in rows:
            pad = length - sum(map(len, row))
            documents = [*row, [0] * pad] if pad else list(row)
            batch["input_ids"].append([token for document in documents for token in document])
            batch["position_ids"].append(
                [i for document in documents for i in range(len(document))]
            )
            batch["labels"].append([label for document in documents for label in _labels(document)])
            for document in documents:
                borders.append(borders[-1] + len(document))
        tensors = {name: torch.tensor(values) for name, values in batch.items()}
        cu_seqlens = torch.tensor(borders, dtype=torch.int32)
        return {**tensors, "cu_seqlens": cu_seqlens, "pixel_values": pixel_values}

    return pack_rows


def _labels(document: Document) -> list[int]:
    return [-100 if token in (0, BOS, IMAGE) else token for token in document[1:]] + [-100]
