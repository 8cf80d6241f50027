from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import ConnectorConfig, ConnectorKind, MM1Config
from mm1_pipeline.models.initialization import build_model, initialize


def weights(config: MM1Config, seed: int) -> dict[str, Tensor]:
    return build_model(config, 3, seed=seed).state_dict()


def test_equal_seeds_give_equal_bits_whatever_was_drawn_before(tiny_config: MM1Config) -> None:
    first = weights(tiny_config, 7)
    torch.rand(5)
    for name, tensor in weights(tiny_config, 7).items():
        assert torch.equal(tensor, first[name]), name


def test_the_global_random_state_is_left_alone(tiny_config: MM1Config) -> None:
    before = torch.get_rng_state()
    weights(tiny_config, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights(tiny_config: MM1Config) -> None:
    first, second = weights(tiny_config, 7), weights(tiny_config, 8)
    matrices = [name for name, tensor in first.items() if tensor.ndim > 1]
    assert matrices
    for name in matrices:
        assert not torch.equal(first[name], second[name]), name


def test_another_connector_leaves_the_other_weights(tiny_config: MM1Config) -> None:
    connector = ConnectorConfig(kind=ConnectorKind.ATTENTION_POOLING, num_tokens=4, num_heads=4)
    first = weights(tiny_config, 7)
    second = weights(dataclasses.replace(tiny_config, connector=connector), 7)
    shared = [name for name in first if not name.startswith("connector")]
    assert all(torch.equal(first[name], second[name]) for name in shared)


@pytest.mark.parametrize("kind", list(ConnectorKind))
def test_every_weight_is_set(tiny_config: MM1Config, kind: ConnectorKind) -> None:
    config = dataclasses.replace(
        tiny_config,
        vision=dataclasses.replace(tiny_config.vision, class_token=True),
        connector=ConnectorConfig(kind=kind, num_tokens=4, num_heads=4, num_blocks=2, d_hidden=24),
        decoder=dataclasses.replace(tiny_config.decoder, tie_embeddings=False),
    )
    model = build_model(config, 3, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize(model, seed=0)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.ndim == 1 and "class_embedding" not in name:
            is_scale = "norm" in name and name.endswith("weight")
            assert (parameter == float(is_scale)).all(), name
        else:
            assert 0.005 < parameter.std() < 0.5, name


def test_norms_start_as_identity_maps(tiny_config: MM1Config) -> None:
    connector = ConnectorConfig(num_tokens=4, num_blocks=2, d_hidden=24)
    model = build_model(dataclasses.replace(tiny_config, connector=connector), 3, seed=0)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm)
    ]
    assert len(norms) > 20
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)


def test_maps_into_the_residual_stream_are_scaled_down(tiny_config: MM1Config) -> None:
    decoder = dataclasses.replace(tiny_config.decoder, d_model=128, d_ff=256, num_layers=8)
    found = weights(dataclasses.replace(tiny_config, decoder=decoder), 0)
    # std 1 / sqrt(256) / sqrt(2 * 8); 32,768 draws estimate it within 1.6 % (four sigmas).
    std = found["decoder.layers.3.feed_forward.down.weight"].std()
    assert std == pytest.approx(1 / 16 / 4, rel=0.016)
    assert found["decoder.layers.3.feed_forward.up.weight"].std() == pytest.approx(
        128**-0.5, rel=0.016
    )
