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
        (presets.vit_tiny_16(), 5.524e6),
        (presets.vit_b_16(), 85.8e6),
        (presets.vit_l_14(224), 303.2e6),  # CLIPVisionModel's 303,179,776, less a final norm
        (presets.vit_h_14(224), 630.8e6),  # CLIPVisionModel's 630,766,080, less a final norm
    ],
)
def test_sizes_of_the_encoders(config: VisionConfig, expected: float) -> None:
    with torch.device("meta"):
        assert count(VisionTransformer(config)) == pytest.approx(expected, rel=0.0002)


@pytest.mark.parametrize(
    ("config", "name"),
    [(presets.aim_600m(), 0.6e9), (presets.aim_1b(), 1.2e9), (presets.aim_3b(), 2.7e9)],
)
def test_sizes_of_aim(config: VisionConfig, name: float) -> None:
    """24 layers of 12 D^2, which AIM's names round (681M is called 600M)."""
    with torch.device("meta"):
        found = count(VisionTransformer(config))
    assert found == pytest.approx(24 * 12 * config.d_model**2, rel=0.003)
    assert found == pytest.approx(name, rel=0.14)


@pytest.mark.parametrize(
    "preset",
    [
        presets.vit_l_14,
        presets.vit_h_14,
        presets.aim_600m,
        presets.aim_1b,
        presets.aim_3b,
        presets.aimv2_l_14,
        presets.siglip2_so400m_14,
    ],
)
@pytest.mark.parametrize("image_size", [224, 336, 378, 672, 14 * 31])
def test_every_encoder_at_every_resolution(
    preset: Callable[[int], VisionConfig], image_size: int
) -> None:
    config = preset(image_size)
    with torch.device("meta"):
        model = VisionTransformer(config)
        features = model(torch.empty(1, 3, image_size, image_size))
    assert features.shape == (1, (image_size // 14) ** 2, config.d_model)


def test_a_resolution_between_two_multiples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size: found 378, .* nearest: 368 or 384"):
        presets.vit_b_16(378)


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
