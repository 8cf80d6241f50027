"""Puts a checkpoint into a training loop, and takes one out of it."""

from __future__ import annotations

import signal
import time
from typing import Any

from mm1_pipeline.training.checkpoints import (
    Checkpoint,
    CheckpointStore,
    TrainingState,
    state_as_plain,
    state_of_plain,
)
from mm1_pipeline.training.distributed import ALONE, World, gather, share, sum_counts
from mm1_pipeline.training.engine import Callback, LoopState
from mm1_pipeline.training.errors import TrainingTerminatedError
from mm1_pipeline.training.metrics import MetricsLog
from mm1_pipeline.training.random_state import random_state, restore_random_state
from mm1_pipeline.training.sharding import gather_state, restore_state
from mm1_pipeline.training.spikes import DivergenceDetector, SpikeDetector
from mm1_pipeline.training.termination import Termination


class Checkpointing(Callback):
    """Resumes from a checkpoint and writes new ones, on any number of ranks.

    Either engine goes on from what the other wrote. Composer's own loading is not used: it runs
    code from the file, and it does not restore the random state when a dataset resumes by itself.

    Args:
        store: where checkpoints lie.
        interval_steps: one is written every so many steps, and after the last step.
        interval_minutes: one is written too when the last, or the start, is so long ago on rank 0.
        num_steps: steps of the whole training.
        resume_from: what `CheckpointStore.newest_good` gave, on rank 0; None on others.
        log: metrics, whose rows up to a checkpoint must be on disk before it; None on other ranks.
        spikes: whose memory of losses is kept.
        divergence: likewise. While it finds losses too high, none is written but the last one and
            that of a training which has to end, so that the newest is from before.
        world: rank 0 reads and writes for all.
        termination: whether this process was asked to end; then one is written at once.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        interval_steps: int,
        interval_minutes: float | None = None,
        num_steps: int,
        resume_from: Checkpoint | None,
        log: MetricsLog | None,
        spikes: SpikeDetector,
        divergence: DivergenceDetector | None = None,
        world: World = ALONE,
        termination: Termination | None = None,
    ) -> None:
        self._store = store
        self._interval_steps = interval_steps
        self._interval_minutes = interval_minutes
        self._saved_at = time.monotonic()
        self._num_steps = num_steps
        self._checkpoint = resume_from
        self._rng: list[dict[str, Any]] | None = None
        self._log = log
        self._spikes = spikes
        self._divergence = divergence
        self._world = world
        self._termination = termination

    def after_load(self, state: LoopState) -> None:
        """Puts the checkpoint into weights, optimizer, schedule and data."""
        checkpoint, self._checkpoint = self._checkpoint, None
        plain = share(state_as_plain(checkpoint.state) if checkpoint else None)
        if plain is None:
            return
        found = state_of_plain(plain)
        restore_state(state.objective, state.optimizer, found.groups, checkpoint)
        self._spikes.load_state_dict(found.loss_spikes)
        if self._divergence is not None:
            self._divergence.load_state_dict(found.divergence)
        self._rng = found.random_states
        # Another version of torch may know other fields; none of the file's is added to them.
        known = state.scheduler.state_dict()
        known |= {key: value for key, value in found.scheduler.items() if key in known}
        state.scheduler.load_state_dict(known)
        state.dataset.load_state_dict(found.dataset)
        state.step, state.samples, state.targets = found.step, found.samples, found.targets

    def after_dataloader(self, state: LoopState) -> None:
        """Restores the random state once the first batch is read, when reading is done with it.

        A rank that the checkpoint does not know keeps the state that its seed gave.
        """
        if self._rng is None:
            return
        states, self._rng = self._rng, None
        if (rank := self._world.rank) < len(states):
            restore_random_state(states[rank])

    def batch_checkpoint(self, state: LoopState) -> None:
        """Writes a checkpoint when one is due, or when the training has to end.

        Raises:
            TrainingTerminatedError: a rank was asked to end; the step is saved.
        """
        step = state.step
        asked = self._termination is not None and self._termination.is_requested
        # Clocks differ: one rank's decides for all, or some would wait for the others for ever.
        is_old = self._world.leads and self._is_old()
        ends, is_due = (count > 0 for count in sum_counts([int(asked), int(is_old)]))
        is_due = is_due or step % self._interval_steps == 0
        if is_due and self._divergence is not None:
            is_due = self._divergence.num_above == 0
        if ends or is_due or step == self._num_steps:
            self._save(state)
        if ends:
            share(None)  # no rank goes before the checkpoint is written
            raise TrainingTerminatedError(
                f"stopped by {signal.SIGTERM.name} after step {step}, which is saved; the same "
                "call goes on from there"
            )

    def _is_old(self) -> bool:
        minutes = self._interval_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save(self, state: LoopState) -> None:
        model, optimizer, groups = gather_state(state.objective, state.optimizer)
        rng = gather(random_state())
        if self._log is None:
            return
        self._log.sync()
        stated = TrainingState(
            step=state.step,
            samples=state.samples,
            targets=state.targets,
            num_rows=self._log.num_rows,
            groups=groups,
            scheduler=state.scheduler.state_dict(),
            dataset=state.dataset.state_dict(state.samples, from_beginning=True),
            loss_spikes=self._spikes.state_dict(),
            random_states=rng,
            divergence=self._divergence.state_dict() if self._divergence is not None else {},
        )
        self._store.save(stated, model, optimizer)
        self._saved_at = time.monotonic()
