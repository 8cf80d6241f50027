from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.assembly import assemble_model
from mm1_pipeline.models.checkpoint import (
    load_vision_encoder,
    save_decoder,
    save_vision_encoder,
)
from mm1_pipeline.models.initialization import build_decoder, build_model, build_vision_encoder
from mm1_pipeline.models.next_token import NextTextToken, NextToken


@pytest.fixture
def parts(tiny_config: MM1Config, tmp_path: Path) -> dict[str, Path]:
    save_vision_encoder(build_vision_encoder(tiny_config.vision, seed=7), tmp_path / "vision")
    save_decoder(build_decoder(tiny_config.decoder, seed=7), tmp_path / "decoder")
    return {"vision_dir": tmp_path / "vision", "decoder_dir": tmp_path / "decoder"}


def test_random_parts_make_the_model_that_is_built_whole(tiny_config, parts) -> None:
    expected = build_model(tiny_config, 3, seed=7)
    found = assemble_model(tiny_config, 3, **parts, seed=7)
    names = [name for name, _ in expected.named_parameters()]
    assert [name for name, _ in found.named_parameters()] == names, "the optimizer's order"
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_an_encoder_may_be_taken_to_another_resolution(tiny_config, parts) -> None:
    larger = dataclasses.replace(tiny_config.vision, image_size=24)
    model = assemble_model(dataclasses.replace(tiny_config, vision=larger), 3, **parts, seed=7)
    assert model.vision.position_embeddings is not None
    assert model.vision.position_embeddings.shape == (36, 32)
    assert model.vision(torch.zeros(1, 3, 24, 24)).shape == (1, 36, 32)
    stored = load_vision_encoder(parts["vision_dir"])
    assert stored.config == tiny_config.vision


def test_a_part_of_another_shape_is_refused(tiny_config, parts) -> None:
    vision = dataclasses.replace(tiny_config.vision, num_layers=3)
    with pytest.raises(ValueError, match=r"model\.vision\.num_layers: 3 -> 2"):
        assemble_model(dataclasses.replace(tiny_config, vision=vision), 3, **parts, seed=7)
    decoder = dataclasses.replace(tiny_config.decoder, rope_theta=5.0)
    with pytest.raises(ValueError, match=r"model\.decoder\.rope_theta: 5\.0 -> 10000\.0"):
        assemble_model(dataclasses.replace(tiny_config, decoder=decoder), 3, **parts, seed=7)


def test_another_kind_of_part_is_refused(tiny_config, parts) -> None:
    with pytest.raises(ValueError, match="found no vision encoder"):
        load_vision_encoder(parts["decoder_dir"])


def test_a_decoder_alone_has_the_losses_of_the_whole_model_on_text(
    tiny_config, parts, make_document, pack
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [[make_document(n, 0, generator) for n in lengths] for lengths in ((5, 9), (12, 2))]
    batch = pack(rows, torch.zeros(0, 3, 16, 16))
    model = assemble_model(tiny_config, 3, **parts, seed=7)
    with torch.no_grad():
        whole = NextToken(model)(batch)
        alone = NextTextToken(model.decoder)(batch)
    assert torch.equal(alone.losses, whole.losses)
    assert torch.equal(alone.weights, whole.weights)


def test_a_decoder_alone_refuses_images(tiny_config, make_document, pack) -> None:
    document = make_document(3, 1, torch.Generator().manual_seed(0))
    batch = {**pack([[document]], torch.zeros(1, 3, 16, 16)), "sample_keys": ["a: 1"]}
    objective = NextTextToken(build_decoder(tiny_config.decoder, seed=0))
    with pytest.raises(ValueError, match=r"mixture: found 1 images in a batch \(a: 1\)"):
        objective.count_targets(batch)
