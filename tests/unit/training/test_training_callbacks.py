"""Composer's loop with our callbacks, on a toy model whose dropout uses random numbers."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import signal
import time
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mm1_pipeline.config.training import (
    DivergenceConfig,
    LossSpikeConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.models.objective import ObjectiveOutput, Term
from mm1_pipeline.training import resuming
from mm1_pipeline.training.callbacks import (
    GradientGuard,
    LoaderGuard,
    LossMeter,
    MetricsRecorder,
    StepStamp,
    TrainingStoppedError,
)
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.engine import Callback, EngineName, Plan, build_engine
from mm1_pipeline.training.metrics import MetricsLog, without_timing
from mm1_pipeline.training.optimizer import build_optimizer
from mm1_pipeline.training.resuming import Checkpointing
from mm1_pipeline.training.schedule import build_scheduler, multiplier
from mm1_pipeline.training.spikes import DivergenceDetector, SpikeDetector
from mm1_pipeline.training.termination import Termination, outlive_termination
from mm1_pipeline.training.watchdog import TrainingHangsError, Watchdog

STEPS, BATCH, LENGTH, VOCABULARY = 12, 4, 6, 11
SCHEDULE = ScheduleConfig(num_steps=STEPS, warmup_steps=3)
STREAMS = ("caption", "text")


class ToyData(torch.utils.data.IterableDataset):
    """Resumes by itself from a count of samples, as `SnapshotDataset` does."""

    def __init__(self, steps: int = STEPS) -> None:
        self.begin, self.steps = 0, steps

    def state_dict(self, num_samples, from_beginning):
        return {"sample_in_epoch": num_samples}

    def load_state_dict(self, state):
        self.begin = state["sample_in_epoch"] // BATCH

    def __iter__(self):
        for step in range(self.begin, self.steps):
            yield toy_batch(step)


def toy_batch(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    input_ids = torch.randint(4, VOCABULARY, (BATCH, LENGTH), generator=generator)
    input_ids[:, 0], input_ids[0, 1], input_ids[1, -1] = 1, 3, 0
    labels = input_ids.roll(-1, dims=1)
    labels[:, -1] = -100
    return {
        "input_ids": input_ids,
        "labels": labels,
        "stream_ids": torch.tensor([0, 0, 0, 1]),
        "sample_keys": [f"key-{step}-{row}" for row in range(BATCH)],
    }


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = nn.Embedding(VOCABULARY, 16)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, VOCABULARY)
        self.poison_at: int | None = None
        self.terminate_at: int | None = None
        self.spike_at: tuple[int, ...] = ()
        self.weights_at: dict[int, torch.Tensor] = {}
        self.calls = 0

    def forward(self, batch):
        # Python's and NumPy's generators are used too: all three must be restored.
        noise = 1 + 0.1 * np.random.random()
        logits = self.head(self.dropout(self.table(batch["input_ids"]))) * noise
        self.calls += 1
        if self.calls == self.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls == self.poison_at:
            logits = logits + float("nan")
        if self.calls in self.spike_at:
            logits = logits * 40
        self.weights_at[self.calls] = self.head.weight.detach().clone()
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), batch["labels"], ignore_index=-100, reduction="none"
        )
        terms = {"step": Term(torch.tensor(float(batch.get("step", -1))), 0.0)}
        return ObjectiveOutput(losses, batch["labels"] != -100, terms)

    def count_targets(self, batch):
        return int((batch["labels"] != -100).sum())


class StopAfter(Callback):
    def __init__(self, step) -> None:
        self.step = step

    def batch_checkpoint(self, state):
        if state.step == self.step:
            raise InterruptedError


class Toy:
    """A training in a directory; calling `run` again resumes it."""

    engine: EngineName = "torch"

    def __init__(
        self,
        folder,
        *,
        interval: int = 4,
        minutes: float | None = None,
        log_interval: int = 1,
        data=None,
        spikes: LossSpikeConfig = LossSpikeConfig(),  # noqa: B008
        divergence: DivergenceConfig | None = DivergenceConfig(),  # noqa: B008
        step_seconds: float = 60.0,
    ) -> None:
        self.spikes, self.divergence = spikes, divergence
        self.watchdog = Watchdog(step_seconds, folder)
        self.store = CheckpointStore(folder / "checkpoints", keep=2)
        self.log = MetricsLog(folder / "training.jsonl")
        self.folder, self.interval, self.log_interval = folder, interval, log_interval
        self.minutes = minutes
        self.data = data or ToyData()
        self.model = ToyModel()

    def run(self, *, stop_after: int | None = None, engine: EngineName | None = None):
        torch.manual_seed(12345)  # whatever the process did before must not matter
        resume_from = self.store.newest_good()
        self.log.rewind(resume_from.state.step if resume_from else 0)
        meter = LossMeter(STREAMS)
        spikes = SpikeDetector(self.spikes)
        divergence = DivergenceDetector(self.divergence) if self.divergence else None
        guard = GradientGuard(
            1.0,
            meter=meter,
            store=self.store,
            work_dir=self.folder,
            spikes=spikes,
            divergence=divergence,
        )
        termination = Termination()
        loader_guard = LoaderGuard(num_steps=STEPS, batch_size=BATCH)
        callbacks = [
            self.watchdog,
            loader_guard,
            StepStamp(),
            meter,
            guard,
            Checkpointing(
                self.store,
                interval_steps=self.interval,
                interval_minutes=self.minutes,
                num_steps=STEPS,
                resume_from=resume_from,
                log=self.log,
                spikes=spikes,
                divergence=divergence,
                termination=termination,
            ),
            MetricsRecorder(
                self.log,
                Progress("toy", unit="steps", total=STEPS, console=Console(file=io.StringIO())),
                meter=meter,
                guard=guard,
                streams=STREAMS,
                pad_id=0,
                image_id=3,
                interval_steps=self.log_interval,
                num_steps=STEPS,
                spikes=spikes,
            ),
        ]
        if stop_after:
            callbacks.append(StopAfter(stop_after))
        optimizer = build_optimizer(self.model, OptimizerConfig(), 1e-2)
        plan = Plan(
            torch.utils.data.DataLoader(self.data, batch_size=None),
            num_steps=STEPS,
            microbatch_size=BATCH,
            callbacks=callbacks,
            seed=3,
        )
        scheduler = build_scheduler(optimizer, SCHEDULE)
        loop = build_engine(engine or self.engine, self.model, optimizer, scheduler, plan)
        try:
            with termination.noted():
                loop.fit()
        finally:
            loop.close()
            self.log.close()
        loader_guard.check_complete(loop.state)
        return self.log.rows()

    def weights(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


@pytest.fixture(scope="module", autouse=True)
def of_engine(engine):
    """All that is tested here holds for each engine."""
    Toy.engine = engine


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, of_engine):
    toy = Toy(tmp_path_factory.mktemp("undisturbed"))
    return toy, toy.run()


@pytest.mark.parametrize("stop_after", [1, 5, 8, 11])
def test_a_resumed_training_is_the_uninterrupted_one(undisturbed, tmp_path, stop_after):
    whole, rows = undisturbed
    with pytest.raises(InterruptedError):
        Toy(tmp_path).run(stop_after=stop_after)
    again = Toy(tmp_path)
    resumed = again.run()
    assert without_timing(resumed) == without_timing(rows)
    assert torch.equal(again.weights(), whole.weights())


def test_a_checkpoint_is_written_by_time_as_well_as_by_steps(undisturbed, tmp_path, monkeypatch):
    whole, rows = undisturbed
    toy = Toy(tmp_path, interval=5, minutes=1.5)
    clock = SimpleNamespace(monotonic=lambda: 30.0 * toy.model.calls)  # half a minute a step
    monkeypatch.setattr(resuming, "time", clock)
    saved, save = [], toy.store.save

    def noting(state, *tensors):
        saved.append(state.step)
        return save(state, *tensors)

    monkeypatch.setattr(toy.store, "save", noting)
    assert without_timing(toy.run()) == without_timing(rows)
    assert saved == [3, 5, 8, 10, 12], "three steps after any other, every fifth, and the last"
    assert torch.equal(toy.weights(), whole.weights())


@pytest.mark.usefixtures("needs_composer")
@pytest.mark.parametrize("stop_after", [1, 6, 8])
def test_either_engine_goes_on_where_the_other_stopped(undisturbed, engine, tmp_path, stop_after):
    """Inside an interval of checkpoints, and at one: losses and weights have the same bits."""
    whole, rows = undisturbed
    with pytest.raises(InterruptedError):
        Toy(tmp_path).run(
            stop_after=stop_after, engine="torch" if engine == "composer" else "composer"
        )
    again = Toy(tmp_path)
    assert without_timing(again.run(engine=engine)) == without_timing(rows)
    assert torch.equal(again.weights(), whole.weights())


def test_rows_say_what_was_measured(undisturbed):
    _, rows = undisturbed
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for step, row in enumerate(rows):
        assert row["lr"] == 1e-2 * multiplier(step, SCHEDULE)
        assert row["shares"] == {"caption": 0.75, "text": 0.25}
        assert row["terms"] == {"step": step}, "batches know their step"
        assert row["positions"] == {"text": 22, "image": 1, "padding": 1}
        weighted = (3 * row["losses"]["caption"] + row["losses"]["text"]) / 4
        assert row["loss"] == pytest.approx(weighted)
        speed = row["timing"]["tokens_per_second"]
        assert speed["text"] == pytest.approx(22 * speed["image"])
        assert 0 < row["timing"]["data_seconds"] < row["timing"]["seconds"]


def test_rows_may_be_fewer_and_the_last_step_has_one(undisturbed, tmp_path):
    _, rows = undisturbed
    with pytest.raises(InterruptedError):
        Toy(tmp_path, log_interval=5).run(stop_after=9)
    fewer = Toy(tmp_path, log_interval=5).run()
    assert without_timing(fewer) == without_timing([rows[4], rows[9], rows[11]])


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_gradient_norm_is_that_before_clipping(tmp_path):
    toy, reference = Toy(tmp_path), ToyModel()
    toy.model.dropout.p = reference.dropout.p = 0.0
    with pytest.raises(InterruptedError):
        toy.run(stop_after=1)
    np.random.seed(3)
    output = reference(toy_batch(0))
    (output.losses.sum() / output.weights.sum()).backward()
    norm = gradient(reference).norm()
    assert norm > 1, "so that clipping does something"
    # torch divides by norm + 1e-6, so what is clipped is as much shorter than 1.
    assert gradient(toy.model).norm() == pytest.approx(1.0, abs=2e-6)
    # Two orders of summation: worst difference measured 1e-7.
    assert toy.log.rows()[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_step_is_taken(tmp_path):
    toy = Toy(tmp_path, interval=2)
    toy.model.poison_at = 6
    with pytest.raises(TrainingStoppedError) as stop:
        toy.run()
    message = str(stop.value)
    assert "at step 6" in message
    assert "key-5-0; key-5-1" in message
    assert "step-00000004" in message
    assert torch.isfinite(toy.weights()).all()
    assert [row["step"] for row in toy.log.rows()] == [1, 2, 3, 4, 5]
    assert "key-5-3" in (tmp_path / "non_finite_step_6.json").read_text()
    healed = Toy(tmp_path, interval=2)
    assert len(healed.run()) == STEPS, "the same call goes on once the cause is gone"


def test_data_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(TrainingStoppedError, match="after 7 steps and 28 sequences"):
        Toy(tmp_path, data=ToyData(steps=7)).run()


def test_a_short_batch_is_an_error(tmp_path, monkeypatch):
    def short(step):
        batch = toy_batch(step)
        return {key: value[:3] for key, value in batch.items()} if step == 4 else batch

    class Short(ToyData):
        def __iter__(self):
            return (short(step) for step in range(STEPS))

    with pytest.raises(TrainingStoppedError, match=r"Found 3 sequences .* step 5, exp"):
        Toy(tmp_path, data=Short()).run()


def test_random_state_really_matters_to_the_toy(undisturbed, tmp_path, monkeypatch):
    """Without restoring it, the resumed losses differ: the test above can fail."""
    monkeypatch.setattr("mm1_pipeline.training.resuming.restore_random_state", lambda state: None)
    _, rows = undisturbed
    with pytest.raises(InterruptedError):
        Toy(tmp_path).run(stop_after=5)
    resumed = Toy(tmp_path).run()
    assert [row["loss"] for row in resumed] != [row["loss"] for row in rows]


def test_a_checkpoint_sets_nothing_but_what_a_training_knows(tmp_path):
    """Composer's own loading evaluates names of algorithms in checkpoints as Python."""
    with pytest.raises(InterruptedError):
        Toy(tmp_path).run(stop_after=4)
    toy = Toy(tmp_path)
    checkpoint = toy.store.newest_good()
    assert checkpoint is not None
    changed = dataclasses.replace(
        checkpoint.state,
        scheduler={**checkpoint.state.scheduler, "step": "not a function", "optimizer": None},
        groups=[{**group, "params": 0.0} for group in checkpoint.state.groups],
    )
    toy.store.save(changed, dict(checkpoint.model), dict(checkpoint.optimizer))
    assert toy.run()[-1]["step"] == STEPS


@pytest.mark.parametrize("step", [1, 6, STEPS - 1])
def test_a_training_that_is_asked_to_end_saves_its_step_and_says_so(undisturbed, tmp_path, step):
    toy = Toy(tmp_path)
    toy.model.terminate_at = step
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        toy.run()
    assert end.value.code == 143, "as a shell says that a program died of SIGTERM"
    assert str(end.value) == (
        f"stopped by SIGTERM after step {step}, which is saved; the same call goes on from there"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert toy.store.steps()[-1] == step
    expected, rows = undisturbed
    again = Toy(tmp_path)
    assert without_timing(again.run()) == without_timing(rows)
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, expected.model.state_dict()[name])


def test_a_wish_to_end_that_comes_too_late_is_passed_on():
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    try:
        with Termination().noted() as termination:
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.is_requested
            assert found == []
        assert found == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_process_still_dies_of_it():
    with Termination().noted() as termination:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not termination.is_requested


def test_a_process_that_reads_outlives_it_for_a_while(monkeypatch):
    """Long enough for the step; even when it is stuck it ends then."""
    monkeypatch.setattr("mm1_pipeline.training.termination._GRACE_SECONDS", 0.3)
    reading, ready = os.pipe()
    child = os.fork()
    if child == 0:
        outlive_termination()
        os.write(ready, b"r")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    time.sleep(0.05)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


@pytest.mark.usefixtures("needs_composer")
def test_composer_does_not_keep_the_signal_handlers():
    from mm1_pipeline.training.composer_engine import keep_signal_handlers

    # A process that was started in the background ignores SIGINT, so set what is expected.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with keep_signal_handlers():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_training_is_quiet(tmp_path, capfd, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        Toy(tmp_path).run()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert not caplog.records
    assert [str(warning.message) for warning in recwarn.list] == []


def spiking(folder, action: Literal["warn", "skip", "stop"]) -> Toy:
    toy = Toy(folder, spikes=LossSpikeConfig(action=action, threshold=50.0, window_steps=4))
    toy.model.spike_at = (7, 9)
    return toy


def moved(model: ToyModel, call: int) -> bool:
    """Whether the step after a forward pass changed the weights."""
    return not torch.equal(model.weights_at[call], model.weights_at[call + 1])


@pytest.mark.parametrize(("action", "skipped"), [("warn", 0), ("skip", 2)])
def test_a_loss_that_leaps_is_counted_and_its_step_left_out_if_wanted(
    tmp_path, caplog, action, skipped
):
    toy = spiking(tmp_path, action)
    with caplog.at_level(logging.WARNING):
        rows = toy.run()
    assert [row["spikes"]["found"] for row in rows] == [0] * 6 + [1] * 2 + [2] * 4
    assert rows[-1]["spikes"]["skipped"] == skipped
    assert rows[6]["spikes"]["score"] > 50
    assert rows[3]["spikes"]["score"] is None
    assert caplog.text.count("robust standard deviations above") == 2
    assert "step 7" in caplog.text
    # The forward pass of step n + 1 has seen what step n did.
    assert [moved(toy.model, call) for call in range(6, 11)] == [
        True,
        action == "warn",
        True,
        action == "warn",
        True,
    ]


def test_a_loss_that_leaps_can_stop_the_training(tmp_path):
    toy = spiking(tmp_path, "stop")
    with pytest.raises(TrainingStoppedError, match=r"at step 7, .*key-6-0.*step-00000004"):
        toy.run()
    assert (tmp_path / "spike_step_7.json").exists()


def test_spikes_are_remembered_over_a_resume(tmp_path):
    whole = spiking(tmp_path / "whole", "skip")
    rows = whole.run()
    with pytest.raises(InterruptedError):
        spiking(tmp_path / "again", "skip").run(stop_after=8)
    again = Toy(tmp_path / "again", spikes=whole.spikes)
    again.model.spike_at = (1,)  # the ninth step is the resumed model's first
    resumed = again.run()
    assert without_timing(resumed) == without_timing(rows)
    assert torch.equal(again.weights(), whole.weights())


@pytest.mark.timeout(30)
def test_a_step_that_hangs_is_ended_and_says_where(tmp_path):
    class Hanging(ToyData):
        def __iter__(self):
            yield from (toy_batch(step) for step in range(3))
            while True:
                time.sleep(0.05)  # as a loader that waits for a shard

    toy = Toy(tmp_path, data=Hanging(), step_seconds=1.0)
    with pytest.raises(TrainingHangsError):
        toy.run()
    message = toy.watchdog.message
    assert message is not None
    assert "in step 4, expected a step within 1 s (timeouts.step_seconds)" in message
    assert "__iter__" in (tmp_path / "hang_rank_0.txt").read_text()


def test_the_watchdog_leaves_slow_but_steady_steps_alone(tmp_path):
    class Slow(ToyData):
        def __iter__(self):
            for step in range(self.begin, self.steps):
                time.sleep(0.1)
                yield toy_batch(step)

    toy = Toy(tmp_path, data=Slow(), step_seconds=0.9)
    assert len(toy.run()) == STEPS
    assert toy.watchdog.message is None


def diverging(folder, *spike_at: int, patience: int = 5) -> Toy:
    toy = Toy(folder, divergence=DivergenceConfig(factor=2.0, patience_steps=patience))
    toy.model.spike_at = spike_at
    return toy


def test_losses_that_stay_high_stop_the_training_at_the_last_good_checkpoint(tmp_path):
    toy = diverging(tmp_path, *range(6, 13))
    with pytest.raises(TrainingStoppedError) as stopped:
        toy.run()
    told = str(stopped.value)
    assert "at step 10 and more than" in told
    assert "in 5 steps in a row" in told
    lowest = min(json.loads(line)["loss"] for line in toy.log.path.read_text().splitlines())
    assert f"the lowest loss so far, {lowest:.4g} at step" in told
    # The one that was due after step 8 would hold weights of the divergence.
    assert toy.store.steps() == [4]
    assert f"Last good checkpoint, from before step 6: {toy.store.path(4)}." in told
    assert "lower optimizer.learning_rate" in told
    assert "divergence to null" in told


def test_a_divergence_before_the_first_checkpoint_names_none(tmp_path):
    with pytest.raises(TrainingStoppedError, match="before step 2: none was written before it"):
        diverging(tmp_path, *range(2, 13)).run()


def test_losses_that_come_down_again_stop_nothing_and_change_nothing(tmp_path, undisturbed):
    spikes = (3, 4, 5, 6, 8, 9, 10, 11)  # four in a row, one fewer than the patience
    kept = Toy(tmp_path / "off", divergence=None)
    kept.model.spike_at = spikes
    rows = kept.run()
    toy = diverging(tmp_path / "on", *spikes)
    assert without_timing(toy.run()) == without_timing(rows)
    assert torch.equal(toy.weights(), kept.weights())
    whole, undisturbed_rows = undisturbed  # With the defaults; the guard draws no number.
    never = Toy(tmp_path / "never", divergence=None)
    assert without_timing(never.run()) == without_timing(undisturbed_rows)
    assert torch.equal(never.weights(), whole.weights())


def test_a_resumed_training_diverges_where_the_uninterrupted_one_does(tmp_path):
    """Also where the checkpoint was written among the high losses, by a SIGTERM."""
    toy = diverging(tmp_path, *range(6, 13))
    toy.model.terminate_at = 7
    with pytest.raises(SystemExit):
        toy.run()
    assert toy.store.steps() == [4, 7]
    again = diverging(tmp_path, *range(1, 6))
    with pytest.raises(TrainingStoppedError, match=r"at step 10 .*before step 6: .*step-00000004"):
        again.run()


def test_a_diverged_training_goes_on_where_the_policy_is_off(tmp_path):
    with pytest.raises(TrainingStoppedError):
        diverging(tmp_path, *range(6, 13)).run()
    resumed = Toy(tmp_path, divergence=None)
    assert [row["step"] for row in resumed.run()] == list(range(1, STEPS + 1))
