from __future__ import annotations

import pytest
import torch

from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.training.adapter import TrainableMM1, count_labels, prepare, split

MODEL = MM1Config(
    vision=VisionConfig(image_size=8, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16),
    connector=ConnectorConfig(num_tokens=1, num_blocks=1),
    decoder=DecoderConfig(
        vocab_size=32, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=16
    ),
)


@pytest.fixture
def batch():
    """Three rows of 5 positions, with 4, 1 and 0 labels."""
    torch.manual_seed(0)
    input_ids = torch.randint(4, 32, (3, 5))
    input_ids[1, 0] = 3
    labels = torch.full((3, 5), -100)
    labels[0, :4], labels[1, 2] = input_ids[0, 1:], input_ids[1, 3]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": torch.arange(5).repeat(3, 1),
        "cu_seqlens": torch.tensor([0, 5, 10, 15], dtype=torch.int32),
        "pixel_values": torch.randn(1, 3, 8, 8),
        "images_per_sequence": torch.tensor([0, 1, 0]),
        "stream_ids": torch.tensor([0, 1, 0]),
        "sample_keys": ["a", "b", "c"],
    }


def test_loss_is_the_mean_over_labels(batch):
    model = build_model(MODEL, 3, seed=1)
    counted = prepare(batch)
    adapter = TrainableMM1(model)
    losses = adapter(counted)
    assert losses.shape == (3, 5)
    assert adapter.loss(losses, counted).item() == pytest.approx(losses.sum().item() / 5)


def test_parts_know_their_labels_and_one_without_any_has_a_loss_of_0(batch):
    parts = split(prepare(batch), 1)
    assert [part["num_labels"] for part in parts] == [4, 1, 0]
    adapter = TrainableMM1(build_model(MODEL, 3, seed=1))
    assert adapter.loss(adapter(parts[2]), parts[2]).item() == 0.0


def test_a_batch_that_fits_is_not_split(batch):
    assert split(count_labels(batch), 3)[0]["pixel_values"] is batch["pixel_values"]


def test_a_batch_without_labels_is_refused_with_its_samples(batch):
    batch["labels"] = torch.full((3, 5), -100)
    with pytest.raises(ValueError, match=r"no label in a batch \(a; b; c\)"):
        prepare(batch)
