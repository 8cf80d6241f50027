"""Puts a checkpoint into Composer's loop, and takes one out of it."""

from __future__ import annotations

import signal
from typing import Any

from mm1_pipeline.training.checkpoints import (
    Checkpoint,
    CheckpointStore,
    TrainingState,
    state_as_plain,
    state_of_plain,
)
from mm1_pipeline.training.composer_api import Callback, Logger, State
from mm1_pipeline.training.distributed import ALONE, World, gather, share, sum_counts
from mm1_pipeline.training.errors import TrainingTerminatedError
from mm1_pipeline.training.metrics import MetricsLog
from mm1_pipeline.training.random_state import random_state, restore_random_state
from mm1_pipeline.training.sharding import gather_state, restore_state
from mm1_pipeline.training.spikes import SpikeDetector
from mm1_pipeline.training.termination import Termination


class Checkpointing(Callback):
    """Resumes from a checkpoint and writes new ones, on any number of ranks.

    Composer's own loading is not used: it runs code from the file, and it does not restore
    the random state when a dataset resumes by itself.

    Args:
        store: where checkpoints lie.
        interval_steps: one is written every so many steps, and after the last step.
        num_steps: steps of the whole training.
        resume_from: what `CheckpointStore.newest_good` gave, on rank 0; None on others.
        log: metrics, whose rows up to a checkpoint must be on disk before it; None on other ranks.
        spikes: whose memory of losses is kept.
        world: rank 0 reads and writes for all.
        termination: whether this process was asked to end; then one is written at once.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        interval_steps: int,
        num_steps: int,
        resume_from: Checkpoint | None,
        log: MetricsLog | None,
        spikes: SpikeDetector,
        world: World = ALONE,
        termination: Termination | None = None,
    ) -> None:
        self._store = store
        self._interval_steps = interval_steps
        self._num_steps = num_steps
        self._checkpoint = resume_from
        self._rng: list[dict[str, Any]] | None = None
        self._log = log
        self._spikes = spikes
        self._world = world
        self._termination = termination

    def after_load(self, state: State, logger: Logger) -> None:
        """Puts the checkpoint into the trainer, at the place where Composer would."""
        checkpoint, self._checkpoint = self._checkpoint, None
        plain = share(state_as_plain(checkpoint.state) if checkpoint else None)
        if plain is None:
            return
        found = state_of_plain(plain)
        restore_state(_objective(state), state.optimizers[0], found.groups, checkpoint)
        self._spikes.load_state_dict(found.loss_spikes)
        self._rng = found.random_states
        (scheduler,) = state.schedulers
        # Another version of torch may know other fields; none of the file's is added to them.
        known = scheduler.state_dict()
        known |= {key: value for key, value in found.scheduler.items() if key in known}
        parts = {
            "schedulers": {type(scheduler).__qualname__: known},
            "timestamp": {type(state.timestamp).__qualname__: _timestamp(found)},
            "dataset_state": {"train": found.dataset, "eval": {}},
        }
        state.load_state_dict(parts, logger, strict=True)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Restores the random state once the first batch is read, when reading is done with it.

        A rank that the checkpoint does not know keeps the state that its seed gave.
        """
        if self._rng is None:
            return
        states, self._rng = self._rng, None
        if (rank := self._world.rank) < len(states):
            restore_random_state(states[rank])

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Writes a checkpoint when one is due, or when the training has to end.

        Raises:
            TrainingTerminatedError: a rank was asked to end; the step is saved.
        """
        step = state.timestamp.batch.value
        asked = self._termination is not None and self._termination.is_requested
        ends = sum_counts([int(asked)]) != [0]
        if ends or step % self._interval_steps == 0 or step == self._num_steps:
            self._save(state)
        if ends:
            share(None)  # no rank goes before the checkpoint is written
            raise TrainingTerminatedError(
                f"stopped by {signal.SIGTERM.name} after step {step}, which is saved; the same "
                "call goes on from there"
            )

    def _save(self, state: State) -> None:
        model, optimizer, groups = gather_state(_objective(state), state.optimizers[0])
        rng = gather(random_state())
        if self._log is None:
            return
        self._log.sync()
        (scheduler,) = state.schedulers
        stamp = state.timestamp
        stated = TrainingState(
            step=stamp.batch.value,
            samples=stamp.sample.value,
            targets=stamp.token.value,
            num_rows=self._log.num_rows,
            groups=groups,
            scheduler=scheduler.state_dict(),
            dataset=_dataset(state).state_dict(stamp.sample.value, from_beginning=True),
            loss_spikes=self._spikes.state_dict(),
            random_states=rng,
        )
        counts = stamp.state_dict()
        counts = {key: value for key, value in counts.items() if not key.endswith("_wct")}
        assert counts == _timestamp(stated), "a training is one epoch"
        self._store.save(stated, model, optimizer)


def _objective(state: State) -> Any:
    """The module whose weights are kept; Composer's wrapper is not part of their names."""
    return getattr(state.model, "objective", state.model)


def _dataset(state: State) -> Any:
    """What keeps the place in the data."""
    loader: Any = state.train_dataloader
    return loader.dataset


def _timestamp(state: TrainingState) -> dict[str, int]:
    """Where a training is, as Composer counts it: in one epoch of one iteration."""
    counts = {"batch": state.step, "sample": state.samples, "token": state.targets}
    return {
        "iteration": 0,
        "epoch": 0,
        **counts,
        "epoch_in_iteration": 0,
        "token_in_iteration": state.targets,
        **{f"{key}_in_epoch": value for key, value in counts.items()},
    }
