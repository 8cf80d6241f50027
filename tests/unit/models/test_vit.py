from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from mm1_pipeline.config.model import Activation, VisionConfig
from mm1_pipeline.models.vit import VisionTransformer

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

TOLERANCE = 1e-5
"""Worst seen 4.3e-6 for values up to 12."""


@pytest.fixture(scope="module")
def clip() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        image_size=28,
        patch_size=7,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases of 0 and scales of 1 would hide a swap
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (".weight" in name))
            else:
                parameter.mul_(2)
    return model


def our_weights(clip: CLIPVisionModel, num_layers: int) -> dict[str, Tensor]:
    theirs = {
        name.removeprefix("vision_model."): value for name, value in clip.state_dict().items()
    }
    ours = {
        "patch_embedding.weight": theirs["embeddings.patch_embedding.weight"].flatten(1),
        "class_embedding": theirs["embeddings.class_embedding"],
        "position_embeddings": theirs["embeddings.position_embedding.weight"],
        "embedding_norm.weight": theirs["pre_layrnorm.weight"],
        "embedding_norm.bias": theirs["pre_layrnorm.bias"],
    }
    names = {
        "attention_norm": "layer_norm1",
        "attention.output": "self_attn.out_proj",
        "feed_forward_norm": "layer_norm2",
        "feed_forward.up": "mlp.fc1",
        "feed_forward.down": "mlp.fc2",
    }
    for index in range(num_layers):
        layer = f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            for our, their in names.items():
                ours[f"layers.{index}.{our}.{kind}"] = theirs[f"{layer}.{their}.{kind}"]
            ours[f"layers.{index}.attention.qkv.{kind}"] = torch.cat(
                [theirs[f"{layer}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            )
    return ours


@pytest.mark.parametrize("feature_layer", [-1, -2, -3])
def test_equals_clip(clip: CLIPVisionModel, feature_layer: int) -> None:
    config = dataclasses.replace(CONFIG, feature_layer=feature_layer)
    model = VisionTransformer(config)
    model.load_state_dict(our_weights(clip, config.num_built_layers), strict=True)
    pixel_values = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = clip(pixel_values, output_hidden_states=True).hidden_states[feature_layer]
        found = model(pixel_values)
    torch.testing.assert_close(found, expected[:, 1:], atol=TOLERANCE, rtol=0)
    assert expected.abs().max() > 1


def test_recomputing_gives_the_same_gradients(clip: CLIPVisionModel) -> None:
    pixel_values = torch.randn(2, 3, 28, 28)
    gradients = []
    for recompute in (False, True):
        model = VisionTransformer(CONFIG, recompute=recompute)
        model.load_state_dict(our_weights(clip, CONFIG.num_layers))
        model(pixel_values).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 14, 28), (2, 3, 35, 35), (2, 1, 28, 28)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, 3, 28, 28\]"):
        VisionTransformer(CONFIG)(torch.zeros(shape))


@pytest.mark.parametrize("feature_layer", [0, -4])
def test_feature_layer_must_exist(feature_layer: int) -> None:
    with pytest.raises(ValueError, match="feature_layer: found"):
        dataclasses.replace(CONFIG, feature_layer=feature_layer)
