"""Composer's loop, and the only door to Composer: what the package uses, and what it undoes.

Our callbacks hang on one of Composer's, which tells them of its events and keeps our state beside
its own. Composer's "tokens" are targets, here and in its timestamps: they weight the microbatches.

Where Composer draws with another seed for a moment, it gathers the random states of all ranks as
pickles and uses its own; here it remembers its own (see `distributed.begin_together`).

Importing Composer has three side effects that a library must not have, all undone here:

- it replaces the process's SIGINT and SIGTERM handlers, so Ctrl-C would no longer raise
  KeyboardInterrupt (and would end a notebook's kernel);
- it needs `mcli`, the client of a platform that is not used here and that cannot be
  installed beside newer dependencies;
- it warns of deprecations inside itself that no user can mend.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mm1_pipeline.models.objective import ObjectiveOutput
from mm1_pipeline.training.adapter import (
    NUM_TARGETS,
    Batch,
    TrainableObjective,
    prepare,
    split,
)
from mm1_pipeline.training.engine import Callback, LoopState, Plan
from mm1_pipeline.training.random_state import random_state, restore_random_state
from mm1_pipeline.training.sharding import layers_of

_HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restores the handlers of SIGINT and SIGTERM on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, so nothing can have changed
        return
    before = {number: signal.getsignal(number) for number in _HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; it cannot be set back.
            if handler is not None:
                signal.signal(number, handler)


if importlib.util.find_spec("mcli") is None:
    sys.modules.setdefault("mcli", ModuleType("mcli"))

with keep_signal_handlers(), warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    import composer  # pyright: ignore[reportMissingImports]
    from composer.core import Event  # pyright: ignore[reportMissingImports]
    from composer.utils import reproducibility  # pyright: ignore[reportMissingImports]


@contextlib.contextmanager
def _seed_context(seed: int) -> Iterator[None]:
    before = random_state()
    reproducibility.seed_all(seed)
    yield
    restore_random_state(before)


reproducibility.seed_context = _seed_context

_DEVICES = {"cpu": "cpu", "cuda": "gpu"}

_SHARDED = {"fsdp": {"mixed_precision": "FULL"}}
"""FSDP2 whose own types stay float32, autocast alone choosing types: the same numbers as in one
process. FSDP2's casts would also take the rotary angles to bfloat16."""

_EVENTS = {
    Event.AFTER_LOAD: "after_load",
    Event.FIT_START: "fit_start",
    Event.AFTER_DATALOADER: "after_dataloader",
    Event.BATCH_START: "batch_start",
    Event.AFTER_LOSS: "after_loss",
    Event.AFTER_TRAIN_BATCH: "after_train_batch",
    Event.BATCH_END: "batch_end",
    Event.BATCH_CHECKPOINT: "batch_checkpoint",
    Event.EPOCH_END: "data_end",
}
"""Composer's events that ours are."""


class ComposerEngine:
    """Composer's Trainer.

    Args:
        objective: trained in place.
        optimizer: of its weights, without state.
        scheduler: of the optimizer.
        plan: everything else.
    """

    def __init__(
        self, objective: Any, optimizer: Optimizer, scheduler: LRScheduler, plan: Plan
    ) -> None:
        dataset = getattr(plan.loader, "dataset", None)
        self.state = LoopState(objective, optimizer, scheduler, dataset)
        is_sharded, on_gpu = plan.world.size > 1, plan.device == "cuda"
        if is_sharded:
            units = set(layers_of(objective))
            # Composer asks the module that it wraps for a function of this name.
            objective.fsdp_wrap_fn = lambda module: module in units
            os.environ["FSDP_VERSION"] = "2"  # else Composer takes FSDP1, which needs a GPU
        self._trainer = composer.Trainer(
            # Composer refuses bfloat16 on a CPU; there the adapter does it.
            model=_Model(plan.trainable(objective, is_cast=not on_gpu)),
            train_dataloader=composer.DataSpec(
                plan.loader,  # pyright: ignore[reportArgumentType]
                batch_transforms=lambda batch: prepare(batch, objective),
                split_batch=lambda batch, size: _split(batch, size, objective),
                get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
                get_num_tokens_in_batch=lambda batch: batch[NUM_TARGETS],
            ),
            max_duration=f"{plan.num_steps}ba",
            optimizers=optimizer,
            schedulers=scheduler,
            step_schedulers_every_batch=True,
            spin_dataloaders=False,  # the dataset begins where it is told
            device=_DEVICES[plan.device],
            precision="amp_bf16" if plan.is_bfloat16 and on_gpu else "fp32",
            device_train_microbatch_size=plan.microbatch_size,
            accumulate_train_batch_on_tokens=True,
            seed=plan.seed,
            run_name=plan.stage,
            callbacks=_Bridge(plan.callbacks, self.state),
            progress_bar=False,
            parallelism_config=_SHARDED if is_sharded else None,
            dist_timeout=plan.collective_seconds,
        )

    def fit(self) -> None:
        """Makes the steps that are left."""
        self._trainer.fit()

    def close(self) -> None:
        """Frees what Composer holds."""
        self._trainer.close()


class _Model(composer.ComposerModel):
    """An objective in the shape that Composer wants."""

    def __init__(self, trainable: TrainableObjective) -> None:
        super().__init__()
        self.objective = trainable.objective
        self._trainable = trainable

    def forward(self, batch: Batch) -> ObjectiveOutput:
        return self._trainable(batch)

    def loss(self, outputs: ObjectiveOutput, batch: Batch) -> Tensor:
        return self._trainable.loss(outputs, batch)


class _Bridge(composer.Callback):
    """Tells our callbacks of Composer's events."""

    def __init__(self, callbacks: Sequence[Callback], state: LoopState) -> None:
        self._callbacks, self._state = callbacks, state

    def run_event(self, event: Event, state: composer.State, logger: composer.Logger) -> None:
        if event not in _EVENTS:
            return
        self._tell(_EVENTS[event], state)
        if event == Event.AFTER_LOAD and self._state.step:
            state.timestamp.load_state_dict(_timestamp(self._state))

    def close(self, state: composer.State, logger: composer.Logger) -> None:
        self._tell("close", state)

    def _tell(self, event: str, state: composer.State) -> None:
        ours, stamp = self._state, state.timestamp
        ours.step, ours.samples, ours.targets = (
            stamp.batch.value,
            stamp.sample.value,
            stamp.token.value,
        )
        ours.batch, ours.output = state.batch, state.outputs  # pyright: ignore
        for callback in self._callbacks:
            getattr(callback, event)(ours)


def _split(batch: Batch, size: int | float, objective: Any) -> Sequence[Batch]:
    assert isinstance(size, int), "microbatches are whole sequences"
    return split(batch, size, objective)


def _timestamp(state: LoopState) -> dict[str, int]:
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
