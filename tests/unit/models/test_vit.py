from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from mm1_pipeline.config.model import (
    Activation,
    EmbeddingNorm,
    PositionEmbedding,
    VisionConfig,
    VisionNorm,
)
from mm1_pipeline.models.initialization import build_decoder, build_model, build_vision_encoder
from mm1_pipeline.models.vit import (
    VisionTransformer,
    prefix_mask,
    resize_positions,
    sinusoidal_positions,
)

CONFIG = VisionConfig(
    image_size=28,
    patch_size=7,
    d_model=32,
    num_layers=3,
    num_heads=4,
    d_ff=64,
    activation=Activation.QUICK_GELU,
    class_token=True,
    final_norm=False,
)

VARIANTS = {
    "clip": CONFIG,
    "siglip": dataclasses.replace(
        CONFIG,
        activation=Activation.GELU_TANH,
        class_token=False,
        embedding_norm=EmbeddingNorm.NONE,
        patch_bias=True,
        final_norm=True,
    ),
    "aim": dataclasses.replace(
        CONFIG,
        activation=Activation.GELU,
        class_token=False,
        embedding_norm=EmbeddingNorm.NONE,
        positions=PositionEmbedding.SINUSOIDAL,
        bias=False,
        patch_bias=True,
        final_norm=True,
    ),
    "aimv2": dataclasses.replace(
        CONFIG,
        activation=Activation.SWIGLU,
        norm=VisionNorm.RMS_NORM,
        class_token=False,
        embedding_norm=EmbeddingNorm.PATCHES,
        bias=False,
        patch_bias=True,
        final_norm=True,
    ),
}


def encoder(config: VisionConfig) -> VisionTransformer:
    """With biases and scales other than 0 and 1."""
    model = build_vision_encoder(config, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def images(count: int = 2, size: int = 28) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    pixel_values = images()
    gradients = []
    for recompute in (False, True):
        model = encoder(VARIANTS[name])
        model.recompute = recompute
        model(pixel_values).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_matters(name: str) -> None:
    """A weight without influence would be a variant that is only half built."""
    model = encoder(VARIANTS[name])
    model(images()).square().sum().backward()
    for weight, parameter in model.named_parameters():
        if weight.endswith("qkv.bias"):  # a key's bias cancels in the softmax
            continue
        assert parameter.grad is not None, weight
        assert parameter.grad.abs().max() > 0, weight


@pytest.mark.parametrize("shape", [(2, 3, 14, 28), (2, 3, 35, 35), (2, 1, 28, 28)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, 3, 28, 28\]"):
        VisionTransformer(CONFIG)(torch.zeros(shape))


@pytest.mark.parametrize("feature_layer", [0, -4])
def test_feature_layer_must_exist(feature_layer: int) -> None:
    with pytest.raises(ValueError, match="feature_layer: found"):
        dataclasses.replace(CONFIG, feature_layer=feature_layer)


def test_sinusoidal_positions_have_no_class_token_and_four_parts() -> None:
    with pytest.raises(ValueError, match="class_token: found true"):
        dataclasses.replace(VARIANTS["aim"], class_token=True)
    with pytest.raises(ValueError, match="d_model: found 30"):
        dataclasses.replace(VARIANTS["aim"], d_model=30, num_heads=5)


def test_sinusoidal_positions_by_their_definition() -> None:
    found = sinusoidal_positions(3, 16, torch.zeros(1))
    for row in range(3):
        for column in range(3):
            rates = [10_000 ** (-i / 4) for i in range(4)]
            expected = [
                wave(place * rate)
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for rate in rates
            ]
            # float32 against float64: worst measured 3.3e-8.
            assert found[3 * row + column].tolist() == pytest.approx(expected, abs=5e-7)


def test_prefix_attention_as_drawn_in_its_docstring() -> None:
    drawn = """
        x x . .
        x x . .
        x x x .
        x x x x
    """
    expected = [[mark == "x" for mark in line.split()] for line in drawn.strip().splitlines()]
    assert prefix_mask(torch.tensor([2]), 4)[0, 0].tolist() == expected


@pytest.mark.parametrize("name", ["siglip", "aim", "aimv2"])
def test_patches_after_the_prefix_see_the_past_only(name: str) -> None:
    model = encoder(VARIANTS[name]).double()
    pixel_values = images().double().requires_grad_()
    prefix = torch.tensor([5, 9])
    features = model(pixel_values, prefix)
    for image, patch in ((0, 2), (0, 7), (1, 12)):
        (gradient,) = torch.autograd.grad(
            features[image, patch].sum(), pixel_values, retain_graph=True
        )
        influence = model.patches(gradient)[image].abs().sum(1)
        limit = max(patch, int(prefix[image]) - 1)
        assert (influence[: limit + 1] > 0).all(), "sees the prefix, the past and itself"
        assert (influence[limit + 1 :] == 0).all(), "sees nothing that comes later"


def test_a_prefix_of_everything_is_no_mask() -> None:
    model = encoder(VARIANTS["aimv2"])
    pixel_values = images()
    with torch.no_grad():
        found = model(pixel_values, torch.tensor([16, 16]))
        # Another kernel may order its sums differently; on this CPU no difference was measured.
        torch.testing.assert_close(found, model(pixel_values), atol=5e-6, rtol=0)


@pytest.fixture(scope="module")
def clip() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=28,
        patch_size=7,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return CLIPVisionModel(config).eval()


@pytest.mark.parametrize("grid", [2, 3, 5, 6, 8])
def test_interpolated_positions_equal_those_of_transformers(clip, grid: int) -> None:
    embeddings = getattr(clip, "vision_model", clip).embeddings  # in transformers 4 one level down
    size = grid * 7
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, grid**2 + 1, 32), size, size)
    found = resize_positions(embeddings.position_embedding.weight, grid, class_token=True)
    # The same kernel on the same values: no difference measured.
    torch.testing.assert_close(found, expected[0], atol=1e-6, rtol=0)


def test_interpolating_to_the_same_grid_changes_no_bit() -> None:
    embeddings = torch.randn(17, 8)
    assert resize_positions(embeddings, 4, class_token=True) is embeddings
    with pytest.raises(ValueError, match="Found 17 position embeddings"):
        resize_positions(embeddings, 4)


def test_interpolation_keeps_places() -> None:
    """A ramp from left to right stays one: 224 px to 378 px, 16 to 27 patches."""
    ramp = torch.arange(16.0).repeat(16, 1).reshape(256, 1)
    resized = resize_positions(ramp, 27).reshape(27, 27)
    expected = (torch.arange(27.0) + 0.5) * 16 / 27 - 0.5
    # Away from the border, where the kernel repeats the edge. torch's cubic bends a line by a
    # twentieth of a patch: measured 0.047. Aligned corners would be off by 0.4.
    torch.testing.assert_close(resized[:, 3:-3], expected[3:-3].expand(27, -1), atol=0.06, rtol=0)


def test_a_part_gets_the_weights_it_has_in_the_whole(tiny_config) -> None:
    whole = build_model(tiny_config, 3, seed=7).state_dict()
    parts = {
        "vision": build_vision_encoder(tiny_config.vision, seed=7),
        "decoder": build_decoder(tiny_config.decoder, seed=7),
    }
    for part, module in parts.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, whole[f"{part}.{name}"]), name
