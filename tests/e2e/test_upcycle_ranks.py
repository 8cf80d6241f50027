"""Upcycled weights sharded by FSDP2 over two ranks still give the dense model's logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_training_ranks import run_ranks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.models.checkpoint import load_model, save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.upcycle import Upcycling, upcycle_checkpoint
from mm1_pipeline.training.distributed import World
from mm1_pipeline.training.sharding import check_sharded, layers_of

CONFIG = MM1Config(
    vision=VisionConfig(
        image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16
    ),
    connector=ConnectorConfig(num_tokens=4, num_blocks=1),
    decoder=DecoderConfig(
        vocab_size=64, d_model=32, num_layers=4, num_heads=4, num_kv_heads=2, d_ff=48
    ),
)
SIZES = [(num_experts, every) for num_experts in (2, 8, 64) for every in (1, 2, 4)]
TOLERANCE = 1e-5
"""Worst seen over the nine: 1.9e-6, logits being about 1 in size."""


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, 64, (1, 24), generator=generator)
    input_ids[0, 2:6] = 3
    return {
        "input_ids": input_ids,
        "position_ids": torch.arange(24)[None],
        "cu_seqlens": torch.tensor([0, 24], dtype=torch.int32),
        "pixel_values": torch.randn(1, 3, 16, 16, generator=generator),
    }


@torch.no_grad()
def logits(model: MM1) -> torch.Tensor:
    hidden = model(**batch()).hidden
    weight = model.decoder.vocabulary_weight
    return hidden @ (weight.full_tensor() if isinstance(weight, DTensor) else weight).T


def sharded_logits(world: World, folders: list[Path]) -> list[list[float]]:
    found = []
    for folder in folders:
        model = load_model(folder)
        for layer in layers_of(model):
            fully_shard(layer)
        fully_shard(model)
        check_sharded(model, world)
        found.append(logits(model).flatten().tolist())
    return found


@pytest.mark.timeout(180)
def test_logits_on_two_ranks_are_the_dense_models(tmp_path: Path) -> None:
    save_model(build_model(CONFIG, 3, seed=0), tmp_path / "dense")
    folders = []
    for num_experts, every in SIZES:
        moe = MoEConfig(num_experts=num_experts, every_n_layers=every)
        folders.append(tmp_path / f"{num_experts}_{every}")
        config = upcycle_checkpoint(tmp_path / "dense", folders[-1], Upcycling(moe, seed=1))
        assert config == dataclasses.replace(
            CONFIG, decoder=dataclasses.replace(CONFIG.decoder, moe=moe)
        )
    expected = logits(load_model(tmp_path / "dense")).flatten()
    for rank in run_ranks(sharded_logits, folders):
        assert not isinstance(rank, str), rank
        for size, found in zip(SIZES, rank, strict=True):
            difference = (torch.tensor(found) - expected).abs().max().item()
            assert difference <= TOLERANCE, size
