from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.models import presets
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.vit import VisionTransformer


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (presets.decoder_9m, 9.4e6),
        (presets.decoder_85m, 85e6),
        (presets.decoder_302m, 302e6),
        (presets.decoder_1_2b, 1208e6),
    ],
)
def test_sizes_of_the_learning_rate_law(
    preset: Callable[[], DecoderConfig], expected: float
) -> None:
    """12 L d^2, what the paper's names say; the widest of 1 % is 688 for 682.7 at 9M."""
    with torch.device("meta"):
        decoder = Decoder(preset())
    without_embeddings = count(decoder) - decoder.embedding.weight.numel()
    assert without_embeddings == pytest.approx(expected, rel=0.01)
    assert without_embeddings == decoder.config.non_embedding_parameters


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (presets.decoder_3b, 2.96e9),
        (presets.decoder_7b, 6.89e9),
        (presets.decoder_30b, 30.2e9),
    ],
)
def test_sizes_of_the_final_models(preset: Callable[[], DecoderConfig], expected: float) -> None:
    with torch.device("meta"):
        assert count(Decoder(preset())) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize(
    ("preset", "paper", "counted", "active"),
    [
        (presets.decoder_3b_moe, 64e9, 64.35e9, 3.94e9),
        (presets.decoder_7b_moe, 47e9, 46.7e9, 8.17e9),
    ],
)
def test_sizes_of_the_mixtures_of_experts(
    preset: Callable[[], DecoderConfig], paper: float, counted: float, active: float
) -> None:
    config = preset()
    with torch.device("meta"):
        decoder = Decoder(config)
    total = count(decoder)
    assert total == pytest.approx(paper, rel=0.02)
    assert total == pytest.approx(counted, rel=0.001)
    assert total == config.num_parameters
    assert config.num_active_parameters == pytest.approx(active, rel=0.002)
    dense = dataclasses.replace(config, moe=None)
    assert config.non_embedding_parameters == dense.non_embedding_parameters


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (presets.vit_l_14(224), 303.2e6),  # CLIPVisionModel's 303,179,776, less a final norm
        (presets.vit_h_14(224), 630.8e6),  # CLIPVisionModel's 630,766,080, less a final norm
    ],
)
def test_sizes_of_the_encoders(config: VisionConfig, expected: float) -> None:
    with torch.device("meta"):
        assert count(VisionTransformer(config)) == pytest.approx(expected, rel=0.0002)


def test_the_papers_grids() -> None:
    assert presets.vit_l_14().grid == 24
    assert presets.vit_h_14().grid == 27


def test_the_final_recipe_is_a_model() -> None:
    config = MM1Config(
        vision=presets.vit_h_14(),
        connector=ConnectorConfig(num_tokens=144),
        decoder=presets.decoder_3b(),
    )
    with torch.device("meta"):
        model = MM1(config, 3)
        tokens = model.connector(model.vision(torch.empty(2, 3, 378, 378)))
    assert tokens.shape == (2, 144, 3072)
