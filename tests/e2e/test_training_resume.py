"""A training that is killed, and whose files are damaged, against one that is left alone."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from training_toy import (
    CONFIG,
    MODEL,
    NUM_STEPS,
    SEED,
    STREAMS,
    build_toy,
    train_and_be_killed,
    train_toy,
    write_toy_shards,
)

from mm1_pipeline.config.training import LearningRateLaw, OptimizerConfig, ScheduleConfig
from mm1_pipeline.models.checkpoint import load_model
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.training.callbacks import TrainingStoppedError
from mm1_pipeline.training.metrics import MetricsLog, without_timing
from mm1_pipeline.training.schedule import multiplier
from mm1_pipeline.training.train import build_model, choose_device, train


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(shards_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    rows, _ = train_toy(shards_dir, folder / "work", folder / "model")
    return folder, rows


def test_losses_of_every_stream_fall(undisturbed):
    _, rows = undisturbed
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    for stream in STREAMS:
        first, last = rows[0]["losses"][stream], rows[-1]["losses"][stream]
        assert first > 5, "ln 320 = 5.8 for a model that knows nothing"
        assert last < 1.5, stream


def test_rows_hold_the_planned_shares_and_learning_rates(undisturbed):
    _, rows = undisturbed
    for step, row in enumerate(rows):
        assert row["lr"] == 1e-2 * multiplier(step, CONFIG.schedule)
        assert row["shares"] == {"caption": 0.45, "interleaved": 0.45, "text": 0.1}
        assert sum(row["positions"].values()) == 20 * 48
        assert row["timing"]["flops_per_second"] > 1e6
        assert row["timing"]["mfu"] is None, "nobody knows what this CPU can do"


def test_killed_and_damaged_training_equals_the_uninterrupted_one(
    undisturbed, shards_dir, tmp_path, caplog
):
    folder, rows = undisturbed
    work_dir, output_dir = tmp_path / "work", tmp_path / "model"
    # Three kills at random steps; after the last at least two checkpoints exist.
    draw = random.SystemRandom()  # the trainings in this process seed the other generator
    kills = [draw.randint(*steps) for steps in ((1, 8), (9, 18), (19, NUM_STEPS - 2))]
    for step in kills:
        train_and_be_killed(shards_dir, work_dir, output_dir, step)
    assert not output_dir.exists()
    assert not any(path.is_symlink() for path in work_dir.rglob("*")), "no link can be missing"
    checkpoints = sorted((work_dir / "checkpoints").glob("step-????????"))
    weights = checkpoints[-1] / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with (work_dir / "training_pretrain.jsonl").open("a") as file:
        file.write('{"step": 39, "los')
    torch.manual_seed(99)

    with caplog.at_level(logging.WARNING):
        resumed, model = train_toy(shards_dir, work_dir, output_dir)

    assert "set aside" in caplog.text.lower(), kills
    assert without_timing(resumed) == without_timing(rows), kills
    for name in ("model.safetensors", "config.json"):
        assert (output_dir / name).read_bytes() == (folder / "model" / name).read_bytes(), kills
    assert MetricsLog(work_dir / "training_pretrain.jsonl").rows() == resumed
    saved = load_model(output_dir).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_finished_training_is_not_trained_again(undisturbed, shards_dir, tmp_path):
    folder, rows = undisturbed
    again, _ = train_toy(shards_dir, folder / "work", tmp_path)
    assert again == rows, "timings too: nothing was run"
    saved = (tmp_path / "model.safetensors").read_bytes()
    assert saved == (folder / "model" / "model.safetensors").read_bytes()


def test_lost_metrics_are_told(undisturbed, shards_dir, tmp_path, caplog):
    folder, _ = undisturbed
    work_dir = tmp_path / "work"
    shutil.copytree(folder / "work", work_dir)
    (work_dir / "training_pretrain.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        rows, _ = train_toy(shards_dir, work_dir, tmp_path / "model")
    assert rows == []
    assert "found 0 rows up to step 40, expected 40" in caplog.text


def test_the_size_of_a_microbatch_changes_nothing(undisturbed, shards_dir, tmp_path):
    """Without dropout, whose random numbers do depend on it."""
    rows = {}
    for size in (None, 20, 7, 1):
        config = dataclasses.replace(
            CONFIG,
            microbatch_size=size,
            schedule=ScheduleConfig(num_steps=3, warmup_steps=1),
            optimizer=OptimizerConfig(),
        )
        folder = tmp_path / str(size)
        rows[size] = train(
            config,
            NextToken(build_model(MODEL, shards_dir, seed=SEED)),
            shards_dir,
            stage="x",
            work_dir=folder,
            output_dir=folder / "model",
        )
    assert without_timing(rows[None]) == without_timing(rows[20])
    law = LearningRateLaw().peak_learning_rate(MODEL.decoder.non_embedding_parameters)
    assert rows[None][0]["lr"] == law
    for size in (7, 1):
        for row, whole in zip(rows[size], rows[None], strict=True):
            # Worst differences measured: 3.6e-7 and 1.3e-5 (which Adam's first steps made of
            # 1e-7). Weighting microbatches by sequences, not labels, gives 1.7e-4 and 1.1e-3.
            assert row["loss"] == pytest.approx(whole["loss"], rel=5e-6)
            assert row["losses"] == pytest.approx(whole["losses"], rel=5e-6)
            assert row["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_another_training_in_the_same_place_is_refused(undisturbed, shards_dir, tmp_path):
    folder, _ = undisturbed
    longer = dataclasses.replace(CONFIG, schedule=ScheduleConfig(num_steps=50, warmup_steps=4))
    with pytest.raises(ValueError, match=r"training\.schedule\.num_steps: 40 -> 50"):
        train_toy(shards_dir, folder / "work", tmp_path, longer)


def test_a_broken_shard_stops_before_the_first_step(shards_dir, tmp_path):
    """Every kind of damage is tried in test_streams_shards; a training looks before it starts."""
    broken = tmp_path / "shards"
    shutil.copytree(shards_dir, broken)
    shard = next((broken / "pages" / "train").glob("*.zstd"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=shard.name):
        train_toy(broken, tmp_path / "work", tmp_path / "model")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("decoder", {"vocab_size": 100}, r"model\.decoder\.vocab_size: found 100, but"),
        (
            "connector",
            {"num_tokens": 4},
            r"num_tokens: found 4, expected 1, .*packing\.image_tokens",
        ),
        ("vision", {"image_size": 24}, r"image_size: found 24, expected 16, .*image\.size"),
    ],
)
def test_a_model_that_does_not_fit_the_shards_is_refused(shards_dir, part, change, message):
    changed = dataclasses.replace(getattr(MODEL, part), **change)
    with pytest.raises(ValueError, match=message):
        build_model(dataclasses.replace(MODEL, **{part: changed}), shards_dir, seed=0)


def test_a_mixture_other_than_the_planned_one_is_refused(shards_dir, tmp_path):
    with pytest.raises(ValueError, match="expected the planned one"):
        train(
            CONFIG,
            NextToken(build_toy(shards_dir)),
            shards_dir,
            stage="x",
            work_dir=tmp_path / "work",
            output_dir=tmp_path / "model",
            expected_mixture={"sha256": "of another"},
        )


def test_a_loss_that_is_not_finite_names_samples_and_checkpoint(shards_dir, tmp_path):
    model = build_toy(shards_dir)
    with torch.no_grad():
        model.decoder.embedding.weight[3] = float("inf")
    with pytest.raises(TrainingStoppedError, match=r"at step 1.*pairs: pairs-\d+.*none yet"):
        train(
            CONFIG,
            NextToken(model),
            shards_dir,
            stage="x",
            work_dir=tmp_path / "work",
            output_dir=tmp_path / "model",
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_the_machine_cannot_do_is_refused():
    assert choose_device(CONFIG) == "cpu"
    with pytest.raises(ValueError, match="device: found cuda"):
        choose_device(dataclasses.replace(CONFIG, device="cuda"))


def test_several_processes_are_refused(shards_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2"):
        train_toy(shards_dir, tmp_path / "work", tmp_path / "model")
