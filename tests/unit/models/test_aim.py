"""Patch prediction against its definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import EmbeddingNorm, PositionEmbedding, VisionConfig
from mm1_pipeline.config.pretraining import AimConfig
from mm1_pipeline.models.aim import (
    HEAD,
    PatchPrediction,
    draw_prefix_lengths,
    load_patch_prediction,
    patch_losses,
)
from mm1_pipeline.models.checkpoint import load_vision_encoder
from mm1_pipeline.models.initialization import build_vision_encoder

VISION = VisionConfig(
    image_size=12,
    patch_size=4,
    d_model=16,
    num_layers=2,
    num_heads=2,
    d_ff=32,
    embedding_norm=EmbeddingNorm.NONE,
    positions=PositionEmbedding.SINUSOIDAL,
    bias=False,
    patch_bias=True,
)
AIM = AimConfig(head_layers=2, head_width=24)


def objective(aim: AimConfig = AIM) -> PatchPrediction:
    return PatchPrediction(build_vision_encoder(VISION, seed=1), aim, seed=2)


@pytest.fixture
def batch() -> dict[str, Any]:
    pixel_values = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": torch.zeros(3, 4, dtype=torch.int64),
        "pixel_values": pixel_values,
        "images_per_sequence": torch.tensor([2, 0, 1]),
        "step": 5,
    }


def plain_patches(image: np.ndarray) -> list[np.ndarray]:
    """Reading order; a patch is channel, row, column."""
    return [
        image[:, y : y + 4, x : x + 4].reshape(-1) for y in range(0, 12, 4) for x in range(0, 12, 4)
    ]


def plain_loss(predictions: Tensor, image: Tensor, prefix: int, normalise: bool) -> float:
    patches = plain_patches(image.double().numpy())
    errors = []
    for k in range(prefix, len(patches)):
        target = patches[k]
        if normalise:
            target = (target - target.mean()) / np.sqrt(target.var() + 1e-6)
        difference = predictions[k - 1].double().numpy() - target
        errors.append(np.mean(difference**2))
    return float(np.mean(errors))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("prefixes", [[1, 4, 8], [8, 8, 1]])
def test_the_loss_by_its_definition(batch, normalise: bool, prefixes: list[int]) -> None:
    images = batch["pixel_values"] * 3 + 1
    predictions = torch.randn(3, 9, 48, generator=torch.Generator().manual_seed(4))
    patches = build_vision_encoder(VISION, seed=1).patches(images)
    found = patch_losses(predictions, patches, torch.tensor(prefixes), normalise=normalise)
    for index, prefix in enumerate(prefixes):
        expected = plain_loss(predictions[index], images[index], prefix, normalise)
        # float32 against float64: worst measured 1.9e-7.
        assert found[index].item() == pytest.approx(expected, rel=2e-6)


def test_a_patch_of_one_colour_is_nothing_to_predict() -> None:
    patches = torch.full((1, 9, 48), 0.7)
    losses = patch_losses(torch.zeros(1, 9, 48), patches, torch.tensor([1]), normalise=True)
    assert losses.item() < 1e-6


def test_losses_are_summed_by_sequence(batch) -> None:
    model = objective()
    with torch.no_grad():
        output = model(batch)
        prefixes = draw_prefix_lengths(batch["pixel_values"], 5, 9)
        predictions = model.head(model.vision(batch["pixel_values"], prefixes))
    alone = [
        plain_loss(predictions[i], batch["pixel_values"][i], int(prefixes[i]), True)
        for i in range(3)
    ]
    assert output.weights.tolist() == [2, 0, 1]
    assert output.losses.tolist() == pytest.approx([alone[0] + alone[1], 0.0, alone[2]], rel=1e-5)
    assert model.count_targets(batch) == 3


def test_no_prediction_sees_what_it_predicts(batch) -> None:
    model = objective().double()
    pixel_values = batch["pixel_values"].double().requires_grad_()
    prefix = torch.tensor([3, 6, 1])
    predictions = model.head(model.vision(pixel_values, prefix))
    for image, place in ((0, 2), (0, 5), (1, 5), (2, 0), (2, 7)):
        (gradient,) = torch.autograd.grad(
            predictions[image, place].sum(), pixel_values, retain_graph=True
        )
        influence = model.vision.patches(gradient)[image].abs().sum(1)
        assert (influence[: place + 1] > 0).all()
        assert (influence[place + 1 :] == 0).all()


def test_prefixes_are_uniform_and_depend_on_image_and_step_alone() -> None:
    images = torch.randn(4_000, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = draw_prefix_lengths(images, 3, 9)
    counts = torch.bincount(drawn, minlength=9).tolist()
    assert counts[0] == 0
    assert len(counts) == 9
    # 4,000 draws of 8 values: 500 each, standard deviation 21; five of them.
    assert all(395 < count < 605 for count in counts[1:])
    assert torch.equal(draw_prefix_lengths(images[5:7], 3, 9), drawn[5:7])
    other_step = draw_prefix_lengths(images, 4, 9)
    assert 0.07 < (other_step == drawn).float().mean() < 0.18, "independent: 1/8 agree"


def test_a_batch_without_images_has_gradients_of_zero(batch) -> None:
    model = objective()
    empty = {
        **batch,
        "pixel_values": torch.zeros(0, 3, 12, 12),
        "images_per_sequence": torch.zeros(3, dtype=torch.int64),
    }
    output = model(empty)
    assert output.losses.tolist() == [0.0, 0.0, 0.0]
    output.losses.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_it_learns_and_saves_the_encoder_alone(batch, tmp_path: Path) -> None:
    model = objective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        output = model(batch)
        loss = output.losses.sum() / output.weights.sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    model.save(tmp_path)
    saved = load_vision_encoder(tmp_path)
    assert saved.config == VISION
    for name, value in model.vision.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name


def test_a_class_token_is_refused() -> None:
    config = VisionConfig(
        image_size=12,
        patch_size=4,
        d_model=16,
        num_layers=1,
        num_heads=2,
        d_ff=32,
        class_token=True,
    )
    with pytest.raises(ValueError, match=r"model\.vision\.class_token: found true"):
        PatchPrediction(build_vision_encoder(config, seed=0), AIM, seed=0)


def test_encoder_and_head_come_back(batch, tmp_path: Path) -> None:
    model = objective()
    model.save(tmp_path)
    loaded = load_patch_prediction(tmp_path)
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(batch).losses, model(batch).losses)
    (tmp_path / HEAD / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"found no model\.safetensors"):
        load_patch_prediction(tmp_path)
    (tmp_path / HEAD / "config.json").unlink()
    (tmp_path / HEAD).rmdir()
    with pytest.raises(ValueError, match="objective: aim"):
        load_patch_prediction(tmp_path)


def test_predicting_nothing_costs_the_variance_of_a_patch(batch) -> None:
    # Normalised pixels have variance 1; random ones are far from the floor.
    expected = torch.ones(3)
    torch.testing.assert_close(
        objective().constant_losses(batch["pixel_values"], 0), expected, atol=1e-5, rtol=0
    )
