"""The paper's recipes as environments: each number that MM1 gives, where a run would read it."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.config.stages import SFTStart
from mm1_pipeline.models import presets

ROOT = Path(__file__).parents[3]

RECIPES: dict[str, tuple[DecoderConfig, float, float, SFTStart]] = {
    "mm1_3b": (presets.decoder_3b(), 3e9, 6e-5, SFTStart.PRETRAIN),
    "mm1_7b": (presets.decoder_7b(), 7e9, 4e-5, SFTStart.PRETRAIN),
    "mm1_30b": (presets.decoder_30b(), 30e9, 2e-5, SFTStart.PRETRAIN),
    "mm1_3b_moe": (presets.decoder_3b_moe(), 64e9, 6e-5, SFTStart.UPCYCLE),
    "mm1_7b_moe": (presets.decoder_7b_moe(), 47e9, 4e-5, SFTStart.UPCYCLE),
}
"""Decoder that is fine-tuned, its parameters, peak learning rate, and what SFT starts from."""


@cache
def parameters(environment: str) -> dict[str, Any]:
    bootstrap_project(ROOT)
    return KedroSession.create(ROOT, env=environment).load_context().params


@pytest.mark.parametrize("environment", RECIPES)
def test_the_decoder_is_the_papers(environment: str) -> None:
    preset, size, learning_rate, start = RECIPES[environment]
    params = parameters(environment)
    decoder = params["model"].decoder
    assert decoder == dataclasses.replace(preset, moe=None), "experts come by upcycling"
    if start is SFTStart.UPCYCLE:
        decoder = dataclasses.replace(decoder, moe=params["upcycle"].moe)
    assert decoder == preset
    assert decoder.num_parameters == pytest.approx(size, rel=0.02)
    assert params["pretrain"].optimizer.learning_rate == learning_rate
    law = params["pretrain"].optimizer.law
    predicted = law.peak_learning_rate(decoder.non_embedding_parameters)
    assert predicted == pytest.approx(learning_rate, rel=0.15), "the law the paper fitted"
    assert params["sft"].init_from is start


@pytest.mark.parametrize("environment", RECIPES)
def test_the_rest_is_the_final_recipe(environment: str) -> None:
    params = parameters(environment)
    model, shard, pretrain = params["model"], params["shard"], params["pretrain"]
    assert model.vision == presets.vit_h_14(378)
    assert model.connector.num_tokens == 144
    assert (shard.packing.sequence_length, shard.packing.max_images) == (4096, 16)
    assert (pretrain.schedule.num_steps, pretrain.schedule.warmup_steps) == (200_000, 2_000)
    shares = {name: stream.share for name, stream in pretrain.mixture.streams.items()}
    assert shares == {"caption": 0.45, "interleaved": 0.45, "text": 0.1}
    assert pretrain.global_batch_size == 512
    synthetic = pretrain.mixture.streams["caption"].sources["captions_synthetic"]
    assert synthetic * 0.45 == pytest.approx(0.07, abs=0.001)
    assert sum(pretrain.mixture.streams["caption"].sources.values()) == pytest.approx(1)


@pytest.mark.parametrize("environment", RECIPES)
def test_fine_tuning_is_the_papers(environment: str) -> None:
    params = parameters(environment)
    sft, shard = params["sft"], params["sft_shard"]
    assert (sft.schedule.num_steps, sft.global_batch_size) == (10_000, 256)
    assert sft.optimizer.learning_rate == 1e-5
    assert (sft.optimizer.kind, sft.optimizer.weight_decay) == ("adafactor", 0.0)
    assert sft.schedule.final_fraction == 0.0
    assert shard.packing.sequence_length == 2048
    assert shard.image.size * shard.sub_images.grid == 1344
    assert (1 + shard.sub_images.grid**2) * shard.packing.image_tokens == 720


@pytest.mark.parametrize("environment", RECIPES)
def test_every_source_that_is_mixed_is_ingested(environment: str) -> None:
    params = parameters(environment)
    ingested = params["ingest"].sources
    for stage in ("pretrain", "sft"):
        for stream in params[stage].mixture.streams.values():
            assert stream.sources.keys() <= ingested.keys()
    used = {
        name
        for mixture in (params["pretrain"].mixture, params["sft"].mixture)
        for stream in mixture.streams.values()
        for name in stream.sources
    }
    assert used == ingested.keys()
    assert all("data/sample" not in source.path for source in ingested.values())
    assert {"coco", "vqav2", "textvqa", "okvqa"} <= params["evaluate"].tasks.keys()


def test_recipes_differ_in_their_globals_only() -> None:
    texts = {(ROOT / "conf" / name / "parameters.yml").read_text() for name in RECIPES}
    assert len(texts) == 1
    for name in RECIPES:
        files = sorted(path.name for path in (ROOT / "conf" / name).iterdir())
        assert files == ["globals.yml", "parameters.yml"]
