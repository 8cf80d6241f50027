from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm1_pipeline.config.model import ConnectorConfig, ConnectorKind, MM1Config
from mm1_pipeline.models.checkpoint import load_model, save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1


@pytest.fixture
def model(tiny_config: MM1Config) -> MM1:
    return build_model(tiny_config, 5, seed=0)


@pytest.mark.parametrize("kind", list(ConnectorKind))
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_keeps_every_bit(
    tiny_config: MM1Config, tmp_path: Path, kind: ConnectorKind, tied: bool
) -> None:
    config = dataclasses.replace(
        tiny_config,
        connector=ConnectorConfig(kind=kind, num_tokens=4, num_heads=4, num_blocks=1),
        vision=dataclasses.replace(tiny_config.vision, class_token=tied, feature_layer=-2),
        decoder=dataclasses.replace(tiny_config.decoder, tie_embeddings=tied),
    )
    model = build_model(config, 5, seed=0)
    save_model(model, tmp_path / "a" / "b")
    loaded = load_model(tmp_path / "a" / "b")
    assert loaded.config == config
    assert loaded.image_token_id == 5
    expected = model.state_dict()
    assert expected.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_equal_models_give_equal_bytes(model: MM1, tmp_path: Path) -> None:
    save_model(model, tmp_path / "first")
    save_model(load_model(tmp_path / "first"), tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_how_to_train_is_not_stored(tiny_config: MM1Config, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config, gradient_checkpointing=True)
    save_model(build_model(config, 5, seed=0), tmp_path)
    assert "gradient_checkpointing" not in (tmp_path / "config.json").read_text()
    assert not load_model(tmp_path).config.gradient_checkpointing
    assert load_model(tmp_path, gradient_checkpointing=True).decoder.recompute


def test_missing_files_are_named(model: MM1, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no config.json and no model.safetensors"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused(model: MM1, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["decoder.final_norm.weight"] = torch.zeros(7)
    del weights["vision.layers.0.attention.qkv.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors do not fit.*found \[7\], expected \[32\]"):
        load_model(tmp_path)


def test_another_format_is_refused(model: MM1, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(ValueError, match="found format_version 2, expected 1"):
        load_model(tmp_path)


def test_an_unknown_field_is_refused(model: MM1, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model"]["decoder"]["num_experts"] = 4
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="num_experts"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        ("vision", "num_layers"),
        ("connector", "num_blocks"),
        ("decoder", "num_layers"),
        ("decoder", "moe", "num_experts"),
    ],
)
def test_a_damaged_number_of_what_is_built_one_by_one_is_refused_at_once(
    place: tuple[str, ...], model: MM1, tmp_path: Path
) -> None:
    save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model"]["decoder"]["moe"] = {"num_experts": 4}
    *parents, last = place
    inner = content["model"]
    for name in parents:
        inner = inner[name]
    inner[last] = 2**70  # found by a mutant: its layers were counted up to
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"{last}: found {2**70}, expected at least [01] and at most 10+\."
    ) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)
