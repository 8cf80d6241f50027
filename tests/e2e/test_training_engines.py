"""Composer's loop and our own: the same bits on a CPU, for every objective, alone and on ranks."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_training_parts import AIM, CLIP, TEXT, make_text, make_vision
from test_training_ranks import (
    TOLERANCE,
    assert_equal,
    objective_of,
    rows_of,
    run_ranks,
    train_rank,
)
from training_toy import CONFIG, MODEL, SEED, train_toy, write_toy_shards

from mm1_pipeline.config.model import MoEConfig
from mm1_pipeline.config.training import (
    CheckpointConfig,
    OptimizerConfig,
    OptimizerKind,
    ScheduleConfig,
    TrainingConfig,
)
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.upcycle import Upcycling, upcycle_checkpoint
from mm1_pipeline.training.distributed import ALONE
from mm1_pipeline.training.metrics import Row, without_timing
from mm1_pipeline.training.stages import continue_from
from mm1_pipeline.training.train import train

pytestmark = pytest.mark.usefixtures("needs_composer")

STEPS = 6
SHORT = {
    "schedule": ScheduleConfig(num_steps=STEPS, warmup_steps=2),
    "checkpoint": CheckpointConfig(interval_steps=4),
}


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy"))


def by(engine: str, config: TrainingConfig = CONFIG, **changes) -> TrainingConfig:
    return dataclasses.replace(config, **{**SHORT, "engine": engine, **changes})


def vision(stage) -> Callable[[str, Path, Path], list[Row]]:
    def make(engine: str, shards_dir: Path, folder: Path) -> list[Row]:
        config = dataclasses.replace(stage, training=by(engine, stage.training))
        return make_vision(config, shards_dir, folder)

    return make


def text(engine: str, shards_dir: Path, folder: Path) -> list[Row]:
    config = dataclasses.replace(TEXT, training=by(engine, TEXT.training))
    return make_text(config, shards_dir, folder)


def pretrain(**changes) -> Callable[[str, Path, Path], list[Row]]:
    """With dropout, so that random numbers count."""

    def make(engine: str, shards_dir: Path, folder: Path) -> list[Row]:
        rows, _ = train_toy(shards_dir, folder / "w", folder / "out", by(engine, **changes))
        return rows

    return make


def upcycle(engine: str, shards_dir: Path, folder: Path) -> list[Row]:
    save_model(build_model(MODEL, shards_image(shards_dir), seed=SEED), folder / "dense")
    moe = Upcycling(MoEConfig(num_experts=4), seed=1)
    upcycle_checkpoint(folder / "dense", folder / "moe", moe)
    objective = continue_from(folder / "moe", shards_dir, 3)
    where = {"stage": "x", "work_dir": folder / "work", "output_dir": folder / "out"}
    return train(by(engine, microbatch_size=7), objective, shards_dir, **where)


def shards_image(shards_dir: Path) -> int:
    from mm1_pipeline.streams.shard_index import ShardIndex

    return ShardIndex.read(shards_dir).special_ids["image"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(vision(CLIP), id="clip"),
        pytest.param(vision(AIM), id="aim"),
        pytest.param(text, id="text"),
        pytest.param(pretrain(), id="pretrain"),
        pytest.param(pretrain(microbatch_size=7), id="microbatches"),
        pytest.param(pretrain(num_workers=1), id="a process that reads"),
        pytest.param(pretrain(precision="bfloat16"), id="bfloat16"),
        pytest.param(
            pretrain(optimizer=OptimizerConfig(kind=OptimizerKind.ADAFACTOR, learning_rate=1e-3)),
            id="adafactor",
        ),
        pytest.param(upcycle, id="mixture of experts"),
    ],
)
def test_losses_and_weights_have_the_same_bits(make, shards_dir, tmp_path):
    rows, weights = {}, {}
    for engine in ("composer", "torch"):
        (tmp_path / engine).mkdir()
        rows[engine] = without_timing(make(engine, shards_dir, tmp_path / engine))
        (saved,) = (tmp_path / engine / "out").glob("*.safetensors")
        weights[engine] = saved.read_bytes()
    assert len(rows["torch"]) == STEPS
    assert rows["torch"] == rows["composer"]
    assert weights["torch"] == weights["composer"]


def checkpoints_until(step: int, work_dir: Path, to: Path) -> None:
    """What a run that was killed after this step leaves."""
    shutil.copytree(work_dir, to)
    for folder in (to / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def test_a_killed_training_goes_on_by_the_other_engine(shards_dir, tmp_path):
    """Both ways, from a checkpoint two steps before the end: the bits of the uninterrupted one."""
    rows = {}
    for engine in ("composer", "torch"):
        config = by(engine, checkpoint=CheckpointConfig(interval_steps=4))
        rows[engine], _ = train_toy(shards_dir, tmp_path / engine, tmp_path / "out", config)
    for first, second in (("composer", "torch"), ("torch", "composer")):
        work_dir = tmp_path / f"{first}, then {second}"
        checkpoints_until(4, tmp_path / first, work_dir)
        again, _ = train_toy(shards_dir, work_dir, tmp_path / "out", by(second))
        assert without_timing(again) == without_timing(rows["composer"])
        assert (work_dir / "checkpoints" / "step-00000006").exists()
        for file in ("model.safetensors", "optimizer.safetensors"):
            found, expected = (
                (folder / "checkpoints" / "step-00000006" / file).read_bytes()
                for folder in (work_dir, tmp_path / "composer")
            )
            assert found == expected, file


def test_two_ranks_give_the_same_bits_and_go_on_from_each_other(shards_dir, tmp_path):
    """By FSDP2 in units of a layer; one rank goes on where two stopped, by the other engine."""
    objective, units = objective_of(shards_dir), {}
    for engine in ("composer", "torch"):
        where = objective, shards_dir, tmp_path / engine
        units[engine] = run_ranks(train_rank, by(engine, microbatch_size=5), *where)
    assert units["torch"] == units["composer"] == ["4 units"] * 2
    rows = rows_of(tmp_path / "composer")
    assert without_timing(rows_of(tmp_path / "torch")) == without_timing(rows)
    for first, second, size in (("composer", "torch", 2), ("torch", "composer", 1)):
        work_dir = tmp_path / f"{second} on {size}"
        checkpoints_until(4, tmp_path / first, work_dir)
        where = objective_of(shards_dir), shards_dir, work_dir
        if size == 2:
            run_ranks(train_rank, by(second, microbatch_size=5), *where)
            assert without_timing(rows_of(work_dir)) == without_timing(rows)
        else:
            train_rank(ALONE, by(second, microbatch_size=5), *where)
            assert_equal(rows_of(work_dir), rows, tolerance=TOLERANCE)
