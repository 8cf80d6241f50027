"""How much of a rank's batch goes through a GPU at once, asked of GPUs that are not here."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
)
from mm1_pipeline.config.shard import PackingConfig
from mm1_pipeline.config.training import MixtureConfig, StreamMixture, TrainingConfig
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.memory import largest_microbatch
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.next_token import NextTextToken, NextToken
from mm1_pipeline.models.presets import decoder_3b, decoder_30b, vit_h_14
from mm1_pipeline.training.device import choose_microbatch_size

GIB = 1 << 30
PACKING = PackingConfig(sequence_length=4096, max_images=16, image_tokens=144)
TRAINING = TrainingConfig(
    mixture=MixtureConfig(streams={"text": StreamMixture(share=1.0, sources={"t": 1.0})}),
    global_batch_size=512,
    precision="bfloat16",
)


def mm1(decoder: DecoderConfig, *, recompute: bool) -> NextToken:
    """A model of the paper on the meta device: shapes, and no weights."""
    config = MM1Config(
        vision=vit_h_14(),
        connector=ConnectorConfig(kind=ConnectorKind.C_ABSTRACTOR, num_tokens=144),
        decoder=decoder,
        gradient_checkpointing=recompute,
    )
    with torch.device("meta"):
        return NextToken(MM1(config, image_token_id=0))


@pytest.fixture
def memory(monkeypatch):
    """Bytes of each GPU, by which a machine with some is told."""

    def set_bytes(total: int) -> None:
        found = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)

    return set_bytes


def choose(objective, num_ranks, *, device="cuda", **changes):
    config = dataclasses.replace(TRAINING, **changes)
    return choose_microbatch_size(config, objective, PACKING, device=device, num_ranks=num_ranks)


def test_the_papers_3b_goes_through_eight_gpus_in_parts(memory, caplog):
    memory(80 * GIB)
    objective = mm1(decoder_3b(), recompute=True)
    chosen = choose(objective, 8)
    assert 1 <= chosen < 64, "65 sequences at once were 287 GiB"
    states = 16 * sum(weight.numel() for weight in objective.parameters()) / 8

    def total(rows: int) -> float:
        return states + objective.activation_bytes(rows, PACKING, in_bfloat16=True)

    assert total(chosen) <= 0.9 * 80 * GIB
    parts = -(-64 // chosen)
    assert total(-(-64 // (parts - 1))) > 0.9 * 80 * GIB, "fewer parts would not fit"
    memory(141 * GIB)
    assert choose(objective, 8) > chosen
    assert choose(objective, 512) == 1, "a rank has one sequence"


def test_a_decoder_alone_goes_through_in_parts_too(memory):
    memory(80 * GIB)
    with torch.device("meta"):
        objective = NextTextToken(Decoder(decoder_3b()))
    chosen = choose(objective, 8)
    assert 1 < chosen < 64
    whole = mm1(decoder_3b(), recompute=False)
    assert choose(whole, 8) < chosen, "without images there is room for more"


def test_what_does_not_fit_is_refused_with_what_would_help(memory):
    memory(80 * GIB)
    objective = mm1(decoder_30b(), recompute=False)
    with pytest.raises(ValueError, match=r"microbatch_size: found .* on each of 4 GPUs") as error:
        choose(objective, 4)
    assert "gradient_checkpointing" in str(error.value)
    assert choose(objective, 4, microbatch_size=1) == 1, "who knows better is let through"


def test_a_cpu_and_a_batch_that_is_compared_are_left_alone(memory):
    memory(1)
    objective = mm1(decoder_3b(), recompute=True)
    assert choose(objective, 1, device="cpu") is None
    objective.compares_batch = True
    assert choose(objective, 1) is None
    del objective.compares_batch
    assert choose(objective, 1, microbatch_size=5) == 5


@pytest.mark.parametrize(
    ("rows", "free", "size"),
    [(64, 640, 64), (64, 639, 32), (64, 210, 16), (65, 640, 33), (7, 20, 2), (5, 10, 1)],
)
def test_parts_are_few_and_even(rows, free, size):
    assert largest_microbatch(rows, lambda count: 10 * count, free) == size


def test_not_even_one_fits():
    assert largest_microbatch(5, lambda count: 10 * count, 9.9) is None
