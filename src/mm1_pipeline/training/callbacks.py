"""What is measured, checked and shown at every step of a training loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.models.objective import ObjectiveOutput
from mm1_pipeline.training.adapter import NUM_TARGETS, STEP
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.distributed import ALONE, World, gather, sum_counts
from mm1_pipeline.training.engine import Callback, LoopState
from mm1_pipeline.training.errors import TrainingStoppedError
from mm1_pipeline.training.metrics import (
    TIMING,
    MetricsLog,
    Row,
    StreamLosses,
    TermMeans,
    count_positions,
    stream_shares,
)
from mm1_pipeline.training.spikes import DivergenceDetector, SpikeDetector

_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 100
"""Of one key; a packed sequence's names all the records in it."""


class StepStamp(Callback):
    """Tells every batch its optimizer step, from 0, for objectives that draw by it."""

    def after_dataloader(self, state: LoopState) -> None:
        """Runs once a batch, before it is cut into microbatches."""
        state.batch[STEP] = state.step


class LossMeter(Callback):
    """Collects the losses and terms of a step, over all its microbatches."""

    def __init__(self, streams: Sequence[str]) -> None:
        self.losses = StreamLosses(streams)
        self.terms = TermMeans()

    def batch_start(self, state: LoopState) -> None:
        """Forgets the step before."""
        self.losses.reset()
        self.terms.reset()

    def after_loss(self, state: LoopState) -> None:
        """Adds a microbatch."""
        output, batch = state.output, state.batch
        assert isinstance(output, ObjectiveOutput)
        self.losses.add(output.losses, output.weights, batch["stream_ids"])
        self.terms.add(output.terms, batch[NUM_TARGETS])


class GradientGuard(Callback):
    """Clips gradients to a norm, and decides whether a step is taken.

    A step that is not finite stops the training, and so do losses that stay high; one whose loss
    leaps is treated as the parameters say. Norm and losses are those of the global batch, so all
    ranks decide alike.

    Source: MM1, Pre-training (clipping 1.0).

    Args:
        max_norm: norm of all gradients together above which they are scaled down.
        meter: the losses of the step.
        store: names the last good checkpoint.
        work_dir: where the keys of the batch are written when training stops.
        spikes: judges losses; None judges none.
        divergence: tells when they stay too high; None never stops the training for that.
        world: rank 0 writes for all.
    """

    def __init__(
        self,
        max_norm: float,
        *,
        meter: LossMeter,
        store: CheckpointStore,
        work_dir: Path,
        spikes: SpikeDetector | None = None,
        divergence: DivergenceDetector | None = None,
        world: World = ALONE,
    ) -> None:
        self._max_norm = max_norm
        self._meter = meter
        self._store = store
        self._work_dir = work_dir
        self._spikes = spikes
        self._divergence = divergence
        self._world = world
        self.norm = math.nan

    def after_train_batch(self, state: LoopState) -> None:
        """Runs between the backward pass and the optimizer."""
        parameters = [p for p in state.objective.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # `clip_grad_norm_` adds its epsilon to each rank's part of a norm that is not whole yet.
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        torch.nn.utils.clip_grads_with_norm_(parameters, self._max_norm, norm)
        self.norm = norm.item()
        loss, by_stream = self._meter.losses.means()
        if not (math.isfinite(self.norm) and math.isfinite(loss)):
            self._stop_for_good(state, loss, by_stream)
        if self._divergence is not None and self._divergence.has_diverged(_step(state), loss):
            self._stop_diverged(state, loss, self._divergence)
        if self._spikes is not None and self._spikes.judge(loss).is_spike:
            self._handle_spike(state, loss, self._spikes)

    def _stop_for_good(self, state: LoopState, loss: float, by_stream: dict[str, float]) -> None:
        bad_streams = [name for name, value in by_stream.items() if not math.isfinite(value)]
        raise TrainingStoppedError(
            f"Found a loss of {loss:.4g} and a gradient norm of {self.norm:.4g} at step "
            f"{_step(state)}, expected finite numbers (streams with a non-finite loss: "
            f"{', '.join(bad_streams) or 'none'}). The step was not taken. "
            f"{self._samples(state, loss, 'non_finite')} The same call would meet the same batch "
            "again: look at these samples, or lower optimizer.learning_rate or "
            "optimizer.max_grad_norm."
        )

    def _stop_diverged(self, state: LoopState, loss: float, found: DivergenceDetector) -> None:
        config, step = found.config, _step(state)
        first = step - found.num_above + 1
        before = [known for known in self._store.steps() if known < first]
        good = self._store.path(before[-1]) if before else "none was written before it"
        raise TrainingStoppedError(
            f"Found a loss of {loss:.4g} at step {step} and more than {found.limit:.4g} in "
            f"{found.num_above} steps in a row (divergence.patience_steps), expected at most "
            f"{config.factor:g} times (divergence.factor) the lowest loss so far, "
            f"{found.lowest:.4g} at step {found.lowest_step}, or divergence.floor "
            f"({config.floor:g}). The step was not taken. Last good checkpoint, from before step "
            f"{first}: {good}. To mend it, lower "
            "optimizer.learning_rate or optimizer.max_grad_norm, or lengthen "
            "schedule.warmup_steps: this training then begins anew. To let it go on as it is, "
            "raise divergence.patience_steps or set divergence to null: the same command resumes "
            "from the newest checkpoint."
        )

    def _handle_spike(self, state: LoopState, loss: float, spikes: SpikeDetector) -> None:
        config = spikes.config
        found = (
            f"Found a loss of {loss:.4g} at step {_step(state)}, {spikes.last.score:.1f} robust "
            f"standard deviations above the last {config.window_steps} steps' (limit "
            f"{config.threshold:g}, loss_spikes.threshold). "
        )
        if config.action == "stop":
            raise TrainingStoppedError(
                f"{found}The step was not taken. {self._samples(state, loss, 'spike')} Look at "
                "these samples, lower optimizer.learning_rate, or set loss_spikes.action to skip "
                "or warn; another policy is another training, which needs another work_dir."
            )
        if config.action == "skip":
            # AdamW passes over weights without a gradient: neither they nor its averages move.
            for parameter in state.objective.parameters():
                parameter.grad = None
        if self._world.leads:
            taken = "left out" if config.action == "skip" else "taken"
            logging.getLogger(__name__).warning(
                "%sThe step was %s (%d found so far).", found, taken, spikes.num_found
            )

    def _samples(self, state: LoopState, loss: float, reason: str) -> str:
        """Writes the keys of the global batch and says where; every rank has to call it."""
        step = _step(state)
        keys = [key for of_rank in gather(list(state.batch["sample_keys"])) for key in of_rank]
        file = self._work_dir / f"{reason}_step_{step}.json"
        details = {"step": step, "loss": str(loss), "sample_keys": keys}
        if self._world.leads:
            file.write_text(json.dumps(details, indent=2), encoding="utf-8")
        shown = "; ".join(_shorten(key) for key in keys[:_SHOWN_KEYS])
        return (
            f"The batch's samples: {shown} (all {len(keys)}, in full, in {file}). Last good "
            f"checkpoint: {self._store.newest_path() or 'none yet'}."
        )


class LoaderGuard(Callback):
    """Makes a short batch or an early end of the data an error.

    At an early end of the data Composer would quietly begin them anew, and a training would end
    well on a part of its data.

    Args:
        num_steps: steps of the whole training.
        batch_size: sequences in each of its global batches.
        world: whose ranks share a batch evenly.
    """

    def __init__(self, *, num_steps: int, batch_size: int, world: World = ALONE) -> None:
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._rows = batch_size // world.size

    def after_dataloader(self, state: LoopState) -> None:
        """Checks a batch that was read."""
        found = len(state.batch["input_ids"])
        if found != self._rows:
            raise TrainingStoppedError(
                f"Found {found} sequences in this rank's part of the batch of step "
                f"{_step(state)}, expected {self._rows} (of global_batch_size "
                f"{self._batch_size}). The loader lost samples: check the shards and make them "
                "again if one is missing."
            )

    def data_end(self, state: LoopState) -> None:
        """Runs when the loader has no more batches."""
        self.check_complete(state)

    def check_complete(self, state: LoopState) -> None:
        """Checks that all planned steps were made.

        Raises:
            TrainingStoppedError: when the data ended before the plan did.
        """
        steps, samples = state.step, state.samples
        if steps != self._num_steps or samples != self._num_steps * self._batch_size:
            raise TrainingStoppedError(
                f"Found the end of the data after {steps} steps and {samples} sequences, expected "
                f"{self._num_steps} steps of {self._batch_size}. The loader ended early: check "
                "the shards and make them again if one is missing. "
                "The same call resumes from the last checkpoint."
            )


class MetricsRecorder(Callback):
    """Makes a row of every logged step, writes it and shows it.

    Args:
        log: where rows are written; None on the ranks that do not write.
        display: the terminal; None where nothing is shown.
        meter: losses of the step.
        guard: gradient norm of the step.
        streams: names, in the order of the batch's `stream_ids`.
        pad_id: token of empty positions.
        image_id: token that stands for a position filled by the connector.
        interval_steps: a row every so many steps, and at the last one.
        num_steps: steps of the whole training.
        spikes: what it says of a step joins the row.
        count_flops: floating-point operations of a training step on a batch, if they are known.
        peak_flops: operations a second of all devices together, if they are known.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        display: Progress | None,
        *,
        meter: LossMeter,
        guard: GradientGuard,
        streams: Sequence[str],
        pad_id: int,
        image_id: int,
        interval_steps: int,
        num_steps: int,
        spikes: SpikeDetector | None = None,
        count_flops: Callable[[Mapping[str, Any]], int | None] = lambda _batch: None,
        peak_flops: float | None = None,
    ) -> None:
        self._log = log
        self._display = display
        self._meter = meter
        self._guard = guard
        self._streams = tuple(streams)
        self._pad_id = pad_id
        self._image_id = image_id
        self._interval_steps = interval_steps
        self._num_steps = num_steps
        self._spikes = spikes
        self._count_flops = count_flops
        self._peak_flops = peak_flops
        self._of_batch: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._batch_read = self._started

    def fit_start(self, state: LoopState) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def after_dataloader(self, state: LoopState) -> None:
        """Describes the batch while it is still whole and on the CPU."""
        self._batch_read = time.perf_counter()
        flops = self._count_flops(state.batch)
        self._of_batch = {
            "flops": None if flops is None else sum_counts([flops])[0],
            "shares": stream_shares(state.batch["stream_ids"], self._streams),
            "positions": count_positions(
                state.batch["input_ids"], pad_id=self._pad_id, image_id=self._image_id
            ),
        }

    def after_train_batch(self, state: LoopState) -> None:
        """Notes the learning rate before the schedule moves on."""
        self._of_batch["lr"] = float(state.optimizer.param_groups[0]["lr"])

    def batch_end(self, state: LoopState) -> None:
        """Makes the row."""
        step = state.step
        row = self._row(step)
        if self._display is not None:
            self._display.update(
                row["step"], note=f"loss {row['loss']:.3f}", seconds=row[TIMING]["seconds"]
            )
        if self._log is not None and (step % self._interval_steps == 0 or step == self._num_steps):
            self._log.append(row)

    def batch_checkpoint(self, state: LoopState) -> None:
        """Restarts the clock; the next step's time includes a checkpoint written here."""
        self._started = time.perf_counter()

    def _row(self, step: int) -> Row:
        seconds = time.perf_counter() - self._started
        loss, losses = self._meter.losses.means()
        positions = self._of_batch["positions"]
        return {
            "step": step,
            "loss": loss,
            "losses": losses,
            "terms": self._meter.terms.means(),
            "lr": self._of_batch["lr"],
            "grad_norm": self._guard.norm,
            "shares": self._of_batch["shares"],
            "positions": positions,
            **({"spikes": self._spikes.row()} if self._spikes else {}),
            TIMING: {
                "seconds": seconds,
                "data_seconds": self._batch_read - self._started,
                "tokens_per_second": {
                    "text": positions["text"] / seconds,
                    "image": positions["image"] / seconds,
                },
                **self._utilisation(seconds),
                "time": time.time(),
            },
        }

    def _utilisation(self, seconds: float) -> dict[str, float | None]:
        """Operations a second, and their share of what the devices could do at most."""
        flops = self._of_batch["flops"]
        speed = None if flops is None else flops / seconds
        has_share = speed is not None and self._peak_flops is not None
        return {
            "flops_per_second": speed,
            "mfu": speed / self._peak_flops if has_share else None,  # pyright: ignore
        }


def _step(state: LoopState) -> int:
    return state.step + 1


def _shorten(key: str) -> str:
    return key if len(key) <= _SHOWN_CHARACTERS else f"{key[:_SHOWN_CHARACTERS]}..."
