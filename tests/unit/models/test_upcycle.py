"""Upcycled models start where the dense one stopped, and are made a tensor at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from mm1_pipeline.config.model import MM1Config, MoEConfig
from mm1_pipeline.config.stages import UpcycleConfig
from mm1_pipeline.config.training import MixtureConfig, OptimizerConfig, TrainingConfig
from mm1_pipeline.models.checkpoint import load_model, save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.moe import MoEFeedForward
from mm1_pipeline.models.upcycle import Upcycling, upcycle_checkpoint


@pytest.fixture(scope="module")
def dense_config(tiny_config: MM1Config) -> MM1Config:
    return dataclasses.replace(
        tiny_config, decoder=dataclasses.replace(tiny_config.decoder, num_layers=4)
    )


@pytest.fixture(scope="module")
def dense_dir(dense_config: MM1Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dense")
    save_model(build_model(dense_config, 3, seed=0), directory)
    return directory


@pytest.fixture(scope="module")
def batch(make_document, pack):
    generator = torch.Generator().manual_seed(0)
    rows = [
        [make_document(9, 1, generator), make_document(5, 2, generator)],
        [make_document(20, 1, generator)],
    ]
    return pack(rows, torch.randn(4, 3, 16, 16, generator=generator))


@torch.no_grad()
def logits(model: MM1, batch) -> torch.Tensor:
    return model.logits(model(**batch).hidden)


@pytest.mark.parametrize("num_experts", [2, 8, 64])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_logits_are_the_dense_models(dense_dir, tmp_path, batch, num_experts, every) -> None:
    moe = MoEConfig(num_experts=num_experts, every_n_layers=every)
    config = upcycle_checkpoint(dense_dir, tmp_path, Upcycling(moe, seed=1))
    upcycled = load_model(tmp_path)
    assert upcycled.config == config
    layers = [
        index
        for index, layer in enumerate(upcycled.decoder.layers)
        if isinstance(layer.feed_forward, MoEFeedForward)
    ]
    assert layers == {1: [0, 1, 2, 3], 2: [1, 3], 4: [3]}[every]
    found = logits(upcycled, batch)
    expected = logits(load_model(dense_dir), batch)
    # Worst seen over all nine: 1.5e-6, logits being about 1 in size.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_without_renormalising_they_are_not(dense_dir, tmp_path, batch) -> None:
    moe = MoEConfig(num_experts=8, renormalise=False)
    upcycle_checkpoint(dense_dir, tmp_path, Upcycling(moe, seed=1))
    difference = logits(load_model(tmp_path), batch) - logits(load_model(dense_dir), batch)
    assert difference.abs().max() > 0.05


def test_the_file_is_what_the_library_would_write_and_seeds_decide(dense_dir, tmp_path) -> None:
    upcycling = Upcycling(MoEConfig(num_experts=4, every_n_layers=2), seed=3, expert_noise=0.1)
    for name in ("first", "second"):
        upcycle_checkpoint(dense_dir, tmp_path / name, upcycling)
    first = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "second" / "model.safetensors").read_bytes()
    save_model(load_model(tmp_path / "first"), tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    ours = load_file(tmp_path / "first" / "model.safetensors")
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], ours[name]) for name in saved)
    other = dataclasses.replace(upcycling, seed=4)
    upcycle_checkpoint(dense_dir, tmp_path / "third", other)
    third = load_file(tmp_path / "third" / "model.safetensors")
    router = "decoder.layers.1.feed_forward.router.weight"
    assert not torch.equal(third[router], ours[router])


def test_noise_has_the_size_that_is_asked_for(dense_dir, tmp_path) -> None:
    moe = MoEConfig(num_experts=6, every_n_layers=4)
    upcycle_checkpoint(dense_dir, tmp_path, Upcycling(moe, seed=0, expert_noise=0.25))
    dense = load_file(dense_dir / "model.safetensors")
    experts = load_file(tmp_path / "model.safetensors")
    weight = dense["decoder.layers.3.feed_forward.up.weight"]
    copies = experts["decoder.layers.3.feed_forward.experts.up"]
    added = copies - weight
    # 6 x 48 x 32 draws: the standard error of their deviation is 0.7 %.
    assert added.std() == pytest.approx(0.25 * weight.std().item(), rel=0.04)
    assert not torch.equal(added[0], added[1])


def test_dropped_units_are_drawn_anew_in_all_three_matrices(dense_dir, tmp_path) -> None:
    moe = MoEConfig(num_experts=3, every_n_layers=4)
    upcycle_checkpoint(dense_dir, tmp_path, Upcycling(moe, seed=0, drop_fraction=0.25))
    dense = load_file(dense_dir / "model.safetensors")
    experts = load_file(tmp_path / "model.safetensors")
    prefix = "decoder.layers.3.feed_forward"
    chosen = []
    for expert in range(3):
        changed = []
        for matrix in ("gate", "up", "down"):
            old = dense[f"{prefix}.{matrix}.weight"]
            new = experts[f"{prefix}.experts.{matrix}"][expert]
            axis = 0 if matrix == "down" else 1
            changed.append((old != new).any(dim=axis))
            size = new.std() / old.std()
            assert size == pytest.approx(1.0, abs=0.2), "drawn from the units' own distribution"
        assert torch.equal(changed[0], changed[1])
        assert torch.equal(changed[0], changed[2])
        assert changed[0].sum() == 12  # a quarter of 48
        chosen.append(changed[0])
    assert not torch.equal(chosen[0], chosen[1])


def test_a_mixture_is_not_upcycled_again(dense_dir, tmp_path) -> None:
    upcycling = Upcycling(MoEConfig(num_experts=2), seed=0)
    upcycle_checkpoint(dense_dir, tmp_path / "once", upcycling)
    with pytest.raises(ValueError, match="mixture of experts already"):
        upcycle_checkpoint(tmp_path / "once", tmp_path / "twice", upcycling)


_MEASURE = """
import sys
from pathlib import Path
from mm1_pipeline.config.model import MoEConfig
from mm1_pipeline.models.upcycle import Upcycling, upcycle_checkpoint
source, output = map(Path, sys.argv[1:])
tiny = Upcycling(MoEConfig(num_experts=2, every_n_layers=2), seed=0)
upcycle_checkpoint(source, output / "warm", tiny)
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
before = status("VmRSS")
large = Upcycling(MoEConfig(num_experts=64), seed=0)
upcycle_checkpoint(source, output / "large", large)
print((status("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_a_tensor_not_the_model(dense_config, tmp_path) -> None:
    """190 MB are written by a process that grows by a fraction of that."""
    decoder = dataclasses.replace(dense_config.decoder, d_model=128, d_ff=480)
    model = build_model(dataclasses.replace(dense_config, decoder=decoder), 3, seed=0)
    save_model(model, tmp_path / "dense")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "dense"), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    written = (tmp_path / "large" / "model.safetensors").stat().st_size
    layer = 64 * 3 * 128 * 480 * 4
    assert written > 4 * layer
    # Seen: under 2 MB, for a layer of 47 MB and a file of 190 MB.
    assert int(finished.stdout) < layer


def test_a_model_is_read_at_another_resolution(dense_config, tmp_path, batch) -> None:
    """Position embeddings are interpolated; everything else is as it was."""
    save_model(build_model(dense_config, 3, seed=0), tmp_path)
    larger = load_model(tmp_path, image_size=32)
    assert larger.config.vision.image_size == 32
    assert larger.vision.position_embeddings.shape == (64, 32)
    pixels = torch.randn(4, 3, 32, 32)
    assert logits(larger, {**batch, "pixel_values": pixels}).isfinite().all()
    same = load_model(tmp_path, image_size=16)
    torch.testing.assert_close(logits(same, batch), logits(load_model(tmp_path), batch))
    for name, weight in larger.state_dict().items():
        changed = name in ("vision.position_embeddings", "connector.position_embeddings")
        assert changed or torch.equal(weight, same.state_dict()[name]), name


def test_training_goes_on_with_the_dense_hyper_parameters() -> None:
    raw = {
        "moe": {"num_experts": 4, "every_n_layers": 2},
        "schedule": {"num_steps": 7, "warmup_steps": 1},
        "seed": 9,
    }
    config = TypeAdapter(UpcycleConfig).validate_python(raw)
    mixture = TypeAdapter(MixtureConfig).validate_python(
        {"streams": {"a": {"share": 1.0, "sources": {"x": 1.0}}}}
    )
    pretrain = TrainingConfig(
        mixture=mixture, optimizer=OptimizerConfig(learning_rate=0.5), global_batch_size=20
    )
    training = config.training(pretrain)
    assert training.optimizer == pretrain.optimizer
    assert (training.schedule.num_steps, training.seed) == (7, 9)
    assert training.global_batch_size == 20
    with pytest.raises(ValidationError, match=r"moe\.d_ff"):
        TypeAdapter(UpcycleConfig).validate_python({**raw, "moe": {"num_experts": 4, "d_ff": 16}})
