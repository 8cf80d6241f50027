"""Trainings on two ranks (gloo, FSDP2) against the same ones in one process."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from training_strangers import Stranger
from training_toy import CONFIG, build_toy, write_toy_shards

from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    OptimizerConfig,
    OptimizerKind,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.training import run
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.distributed import ALONE, World, begin_together, once_a_node
from mm1_pipeline.training.errors import TrainingTerminatedError
from mm1_pipeline.training.metrics import MetricsLog
from mm1_pipeline.training.run import TrainingRun, metrics_file
from mm1_pipeline.training.sharding import check_sharded
from mm1_pipeline.training.train import train

STEPS = 20
TOLERANCE = 1e-5
"""Of losses and relative norms over 20 steps. Worst seen: 2.4e-7 and 4.0e-6. Weights drift: 1.2e-4
the biases of keys, which no output depends on, so that Adam divides a gradient of nothing but
rounding by its own size; 1.9e-5 the other weights of attention; 3.4e-6 all else."""

EXACT = 1e-11
"""Of losses, norms and weights in float64. Worst seen: 9e-16, 4e-16 and 7e-14 (biases of keys).
Clipping by a norm of shards that is not whole yet, as `clip_grad_norm_` does, costs losses 5e-9."""

TRAINING = dataclasses.replace(
    CONFIG,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    schedule=ScheduleConfig(num_steps=STEPS, warmup_steps=4),
    checkpoint=CheckpointConfig(interval_steps=5, keep=10),
)


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy"))


def objective_of(shards_dir: Path) -> NextToken:
    return NextToken(build_toy(shards_dir, MM1))


def run_ranks(function: Any, *arguments: Any, size: int = 2) -> list[Any]:
    """Calls a function on ranks that are forked, for imports take longer than trainings."""
    folder = tempfile.mkdtemp()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, size, folder, results, function, arguments))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        by_rank = dict(results.get(timeout=90) for _ in ranks)
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()
        shutil.rmtree(folder)
    return [by_rank[rank] for rank in range(size)]


def _rank(rank: int, size: int, folder: str, results: Any, function: Any, arguments: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    torch.set_num_threads(1)
    world = World.of_environment()
    store = dist.FileStore(f"{folder}/ranks", size)  # pyright: ignore[reportPrivateImportUsage]
    begin_together(world, "gloo", store, timeout_seconds=60)
    try:
        results.put((rank, function(world, *arguments)))
    except (Exception, TrainingTerminatedError) as error:
        results.put((rank, f"{type(error).__name__}: {error}"))


def train_rank(
    world: World, config: TrainingConfig, objective: NextToken, shards_dir: Path, work_dir: Path
) -> str:
    where = {"stage": "x", "work_dir": work_dir, "device": "cpu", "world": world}
    TrainingRun(config, objective, shards_dir, **where).to_the_end()
    check_sharded(objective, world)
    return f"{sum(isinstance(module, FSDPModule) for module in objective.modules())} units"


def rows_of(work_dir: Path) -> list[dict]:
    return MetricsLog(metrics_file(work_dir, "x")).rows()


def train_alone(config: TrainingConfig, objective: NextToken, shards_dir: Path, folder: Path):
    work_dir = folder / "work"
    output_dir = folder / "model"
    train(config, objective, shards_dir, stage="x", work_dir=work_dir, output_dir=output_dir)
    return rows_of(work_dir)


def assert_equal(rows: list[dict], others: list[dict], tolerance: float = TOLERANCE) -> None:
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert row["losses"] == pytest.approx(other["losses"], abs=tolerance)
        # Adam and clipping hide a gradient that is a multiple of the right one; the norm does not.
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=2 * tolerance)
        for key in ("shares", "positions", "lr", "spikes"):
            assert row[key] == other[key], key


@pytest.fixture(scope="module")
def alone(shards_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, train_alone(TRAINING, objective_of(shards_dir), shards_dir, folder)


@pytest.mark.timeout(180)
def test_two_launched_processes_equal_one(alone, shards_dir, tmp_path, capfd, monkeypatch):
    """Through the launcher: the weights come back into the objective that was handed in.

    A stranger of the same machine meanwhile harasses every port that opens.
    """
    folder, rows = alone
    objective = objective_of(shards_dir)
    config = dataclasses.replace(TRAINING, num_processes=2)
    (tmp_path / "meetings").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "meetings"))
    with Stranger(os.getpid(), tmp_path / "ran") as stranger:
        assert_equal(train_alone(config, objective, shards_dir, tmp_path), rows)
    assert {address for address, _ in stranger.seen} == {"127.0.0.1"}, "only Gloo, only here"
    assert not (tmp_path / "ran").exists(), "what the stranger sent was not run"
    assert not any((tmp_path / "meetings").iterdir())
    shown = capfd.readouterr().err
    assert "weights sharded over 2 processes" in shown
    assert "finished 20 steps" in shown
    saved = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in objective.model.named_parameters():
        assert torch.equal(saved[name], weight.detach()), name
    expected = load_file(folder / "model" / "model.safetensors")
    assert max((saved[name] - expected[name]).abs().max() for name in saved) < 1e-3
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {"checkpoints", "identity.json", "logs", "training_x.jsonl"}


def go_on_from(step: int, folder: Path, work_dir: Path) -> None:
    """What a run that was killed after this step leaves."""
    shutil.copytree(folder, work_dir)
    for folder in (work_dir / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def test_adafactor_factors_the_whole_weights(shards_dir, tmp_path):
    """Means over rows, columns and whole updates are those of all shards; 1 -> 2 too."""
    config = dataclasses.replace(
        TRAINING,
        optimizer=OptimizerConfig(kind=OptimizerKind.ADAFACTOR, learning_rate=1e-3),
        schedule=ScheduleConfig(num_steps=4, warmup_steps=2),
        checkpoint=CheckpointConfig(interval_steps=2),
    )
    objective = objective_of(shards_dir)
    run_ranks(train_rank, config, objective, shards_dir, tmp_path / "two")
    rows = train_alone(config, objective, shards_dir, tmp_path / "one")
    # Worst seen 4.6e-5: first steps divide small gradients by their size. Of each rank's own
    # shard, updates would be other ones: 0.2 after a step.
    assert_equal(rows_of(tmp_path / "two"), rows, tolerance=5e-4)
    go_on_from(2, tmp_path / "one" / "work", tmp_path / "again")
    run_ranks(train_rank, config, objective_of(shards_dir), shards_dir, tmp_path / "again")
    assert_equal(rows_of(tmp_path / "again"), rows, tolerance=5e-4)


@pytest.fixture
def in_float64(monkeypatch):
    """Weights, images, losses and Composer's sums of float64, by the same code."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    # FSDP2 asks the backend for means of float32 and bfloat16 only; others it divides itself.
    monkeypatch.setattr(run, "loss_factor", lambda: 1.0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def last_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointStore(work_dir / "checkpoints", keep=10).newest_good()
    assert checkpoint is not None
    assert checkpoint.state.step == STEPS
    return dict(checkpoint.model)


class AskedToEnd(NextToken):
    """Gets a SIGTERM in its `last`-th step, on the last rank only."""

    last = 0

    def forward(self, batch):
        self.last -= self.training
        if self.last == 0 and int(os.environ.get("RANK", "0")) == dist_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch)


def dist_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def test_weights_on_any_number_of_ranks_are_the_same_but_for_rounding(
    shards_dir, tmp_path, in_float64
):
    """20 steps on 1 rank, on 2, and in turn on 1, 2, 3 and 1, each asked to end: the same weights.

    Once the newest checkpoint is broken. In float32 weights drift apart by 1e-4, by rounding
    alone: with float64's, 5e8 times finer, less than 1e-13 is left.
    """
    shares = {"caption": 0.5, "interleaved": 0.25, "text": 0.25}  # of 12, which 3 divides too
    streams = {
        name: dataclasses.replace(stream, share=shares[name])
        for name, stream in TRAINING.mixture.streams.items()
    }
    mixture = dataclasses.replace(TRAINING.mixture, streams=streams)
    config = dataclasses.replace(TRAINING, mixture=mixture, global_batch_size=12)
    one, two, changing = (tmp_path / name for name in ("one", "two", "changing"))
    start = AskedToEnd(build_toy(shards_dir, MM1))
    drawn = copy.deepcopy(start.state_dict())

    def train_on(size: int, last: int, work_dir: Path) -> list[str]:
        start.last = last
        if size > 1:
            return run_ranks(train_rank, config, start, shards_dir, work_dir, size=size)
        try:
            return [train_rank(ALONE, config, copy.deepcopy(start), shards_dir, work_dir)]
        except TrainingTerminatedError as end:
            return [f"{type(end).__name__}: {end}"]

    assert train_on(1, -1, one) == ["0 units"]
    assert train_on(2, -1, two) == ["4 units"] * 2, "the rest, 1 encoder and 2 decoder layers"
    for size, last, step in ((1, 6, 6), (2, 5, 11), (3, 3, 13)):
        ended = f"TrainingTerminatedError: stopped by SIGTERM after step {step}, which is saved"
        assert all(text.startswith(ended) for text in train_on(size, last, changing)), size
        newest = changing / "checkpoints" / f"step-{step:08d}"
        assert newest.exists()
        if size == 2:  # three go on from step 10
            broken = newest / "optimizer.safetensors"
            os.truncate(broken, broken.stat().st_size - 1)
    assert (changing / "checkpoints" / "step-00000011.broken").exists()
    assert train_on(1, -1, changing) == ["0 units"]
    expected = last_weights(one)
    for work_dir in (two, changing):
        assert_equal(rows_of(work_dir), rows_of(one), tolerance=EXACT)
        for name, weight in last_weights(work_dir).items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=EXACT, msg=name)
    moved = [(weight - drawn[name]).abs().max() for name, weight in expected.items()]
    assert min(moved) > 1e-3, "all weights were trained"


class SilentPictures(NextToken):
    """Nothing is predicted in sequences of the first stream: a rank that has no other, has none."""

    def forward(self, batch):
        return super().forward({**batch, "labels": self._labels(batch)})

    def count_targets(self, batch):
        return int((self._labels(batch) != IGNORED).sum())

    def _labels(self, batch):
        silent = batch["stream_ids"] == 0
        return batch["labels"].masked_fill(silent.unsqueeze(1), IGNORED)


@pytest.mark.parametrize(
    ("shares", "kind"),
    [
        ({"caption": 0.5, "text": 0.5}, NextToken),
        ({"text": 1.0}, NextToken),
        ({"caption": 0.5, "text": 0.5}, SilentPictures),
    ],
    ids=["a rank without images", "no images at all", "a rank with images only"],
)
def test_what_a_rank_does_not_have_stops_nobody(shards_dir, tmp_path, shares, kind):
    """With two sequences a batch, one rank has the pictures and the other the text."""
    sources = {"caption": "pairs", "text": "books"}
    mixture = {
        name: StreamMixture(share=share, sources={sources[name]: 1.0})
        for name, share in shares.items()
    }
    config = dataclasses.replace(
        TRAINING,
        mixture=MixtureConfig(streams=mixture),
        global_batch_size=2,
        schedule=ScheduleConfig(num_steps=4, warmup_steps=2),
    )
    rows = train_alone(config, kind(build_toy(shards_dir, MM1)), shards_dir, tmp_path / "one")
    objective = kind(build_toy(shards_dir, MM1))
    ends = run_ranks(train_rank, config, objective, shards_dir, tmp_path / "two")
    assert all(end.endswith(" units") for end in ends), ends
    assert_equal(rows_of(tmp_path / "two"), rows)


def test_a_loss_that_is_not_finite_stops_all_ranks_with_all_samples(shards_dir, tmp_path):
    objective = objective_of(shards_dir)
    with torch.no_grad():
        objective.model.decoder.embedding.weight[3] = float("inf")
    errors = run_ranks(train_rank, TRAINING, objective, shards_dir, tmp_path)
    for error in errors:
        assert error.startswith("TrainingStoppedError: Found a loss of nan")
        assert "(all 20, in full, in" in error
    assert (tmp_path / "non_finite_step_1.json").read_text().count("pairs: ") == 9


def unsharded(world: World, objective: NextToken) -> None:
    check_sharded(objective, world)


def test_weights_that_are_not_sharded_are_refused(shards_dir):
    errors = run_ranks(unsharded, objective_of(shards_dir))
    assert all("weights that are not sharded over the 2 ranks" in error for error in errors)


def fail_on_first(world: World) -> None:
    def check() -> None:
        assert world.local_rank == 0, "once a node"
        raise ValueError("pages/train/shard.00001.mds: missing")

    once_a_node(world, check)


def test_what_one_rank_finds_wrong_stops_all(shards_dir):
    found = run_ranks(fail_on_first)
    assert found == ["ValueError: pages/train/shard.00001.mds: missing"] * 2


@pytest.mark.parametrize(
    ("num_processes", "message"),
    [(3, "found 3 on 1 node.*nearest possible: 2 or 4"), (40, "nearest possible: 10 or 20")],
)
def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(
    shards_dir, tmp_path, num_processes, message
):
    config = dataclasses.replace(TRAINING, num_processes=num_processes)
    with pytest.raises(ValueError, match=message):
        train_alone(config, objective_of(shards_dir), shards_dir, tmp_path)
    assert not (tmp_path / "work").exists()
