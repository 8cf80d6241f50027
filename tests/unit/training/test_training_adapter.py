from __future__ import annotations

import dataclasses

import pytest
import torch

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.models.objective import Term
from mm1_pipeline.training.adapter import NUM_TARGETS, TrainableObjective, prepare, split

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


@pytest.fixture
def objective():
    return NextToken(build_model(MODEL, 3, seed=1))


def test_loss_is_the_mean_over_labels(batch, objective):
    counted = prepare(batch, objective)
    adapter = TrainableObjective(objective)
    output = adapter(counted)
    assert output.losses.shape == (3, 5)
    expected = output.losses.sum().item() / 5
    assert adapter.loss(output, counted).item() == pytest.approx(expected)


def test_terms_join_the_loss_by_their_coefficients(batch, objective):
    counted = prepare(batch, objective)
    adapter = TrainableObjective(objective)
    output = adapter(counted)
    alone = adapter.loss(output, counted).item()
    terms = {"joins": Term(torch.tensor(4.0), 0.5), "is_logged": Term(torch.tensor(9.0), 0.0)}
    loss = adapter.loss(output._replace(terms=terms), counted)
    assert loss.item() == pytest.approx(alone + 2.0)


def test_a_mixture_of_experts_trains_on_its_whole_loss(batch):
    decoder = dataclasses.replace(MODEL.decoder, moe=MoEConfig(num_experts=4), output_z_weight=0.1)
    model = build_model(dataclasses.replace(MODEL, decoder=decoder), 3, seed=1)
    objective = NextToken(model)
    counted = prepare(batch, objective)
    adapter = TrainableObjective(objective)
    output = adapter(counted)
    assert output.terms.keys() == {
        "load_balance",
        "router_z",
        "router_load",
        "router_entropy",
        "router_dead",
        "router_load_by_stream",
        "output_z",
    }
    names = ("input_ids", "position_ids", "cu_seqlens", "pixel_values", "labels")
    whole = model(**{name: batch[name] for name in names}).loss.item()
    assert adapter.loss(output, counted).item() == pytest.approx(whole, rel=1e-6)
    assert whole > output.losses.sum().item() / 5 + 0.05


def test_parts_know_their_labels_and_one_without_any_has_a_loss_of_0(batch, objective):
    parts = split({**prepare(batch, objective), "step": 8}, 1, objective)
    assert [part[NUM_TARGETS] for part in parts] == [4, 1, 0]
    assert [part["step"] for part in parts] == [8, 8, 8]
    adapter = TrainableObjective(objective)
    assert adapter.loss(adapter(parts[2]), parts[2]).item() == 0.0


def test_a_batch_that_fits_is_not_split(batch, objective):
    whole = prepare(batch, objective)
    assert split(whole, 3, objective)[0]["pixel_values"] is batch["pixel_values"]


def test_a_batch_without_labels_is_refused_with_its_samples(batch, objective):
    batch["labels"] = torch.full((3, 5), -100)
    with pytest.raises(ValueError, match=r"no target in a batch \(a; b; c\)"):
        prepare(batch, objective)


def test_autocast_on_a_cpu_multiplies_in_bfloat16(batch, objective):
    expected = TrainableObjective(objective)(batch).losses
    found = TrainableObjective(objective, autocast="cpu")(batch).losses
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    # bfloat16 has 8 bits: worst seen 7.9e-3 for a loss of 5.6.
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=0)
