"""Losses of ten training steps on a CPU, against those stored beside this file.

They hold everything at once: initialisation, packing rules, encoder, connector, decoder, loss,
gradients. A change that is meant to change numerics writes them anew
(`python tests/golden/models/test_loss_golden.py`) and says so in CHANGELOG.md.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.models.initialization import build_model

STORED = Path(__file__).with_name("losses.json")
NUM_STEPS = 10
IMAGE, NUM_TOKENS = 3, 4

TOLERANCE = 2e-4
"""Sums are ordered by the processor's vector width, the number of threads and the version of
torch, and Adam amplifies the difference where gradients are tiny. Worst seen 1.3e-5: AVX2 kernels
against AVX-512; threads and torch 2.7 against 2.13: 2.4e-7."""


def config(kind: ConnectorKind) -> MM1Config:
    return MM1Config(
        vision=VisionConfig(
            image_size=20, patch_size=4, d_model=32, num_layers=2, num_heads=2, d_ff=64
        ),
        connector=ConnectorConfig(kind=kind, num_tokens=NUM_TOKENS, num_blocks=1, num_heads=4),
        decoder=DecoderConfig(
            vocab_size=64, d_model=48, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=96
        ),
    )


def batch() -> dict[str, Tensor]:
    """Two rows of 48: pairs of an image and 3 to 7 words, text, padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, 64, (2, 48), generator=generator)
    borders = [0, 9, 20, 48, 60, 84, 96]
    for start in (0, 9, 48):
        input_ids.view(-1)[start] = 1
        input_ids.view(-1)[start + 1 : start + 1 + NUM_TOKENS] = IMAGE
    input_ids.view(-1)[84:] = 0
    labels = input_ids.roll(-1, 1).view(-1)
    labels[(labels == IMAGE) | (labels == 0)] = -100
    labels[torch.tensor(borders[1:]) - 1] = -100
    positions = [i for start, end in pairwise(borders) for i in range(end - start)]
    return {
        "input_ids": input_ids,
        "labels": labels.view(2, 48),
        "position_ids": torch.tensor(positions).view(2, 48),
        "cu_seqlens": torch.tensor(borders, dtype=torch.int32),
        "pixel_values": torch.randn(3, 3, 20, 20, generator=generator),
    }


def train(kind: ConnectorKind) -> list[float]:
    model = build_model(config(kind), IMAGE, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    inputs = batch()
    losses = []
    for _ in range(NUM_STEPS):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", list(ConnectorKind))
def test_ten_steps_give_the_stored_losses(kind: ConnectorKind) -> None:
    stored = json.loads(STORED.read_text())[kind]
    found = train(kind)
    assert found == pytest.approx(stored, abs=TOLERANCE)
    assert stored[-1] < stored[0] - 1


if __name__ == "__main__":
    STORED.write_text(json.dumps({kind: train(kind) for kind in ConnectorKind}, indent=1) + "\n")
