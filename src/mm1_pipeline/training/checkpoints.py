"""Checkpoints to resume from: written atomically, read without running code, self-healing.

They are for resuming only; what a stage hands on is safetensors (models/checkpoint.py).
The newest checkpoint is the one with the highest step in its name that can be read: there
is no `latest` link that could be missing or point at half a file.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from mm1_pipeline.training.composer_api import (
    Callback,
    Logger,
    State,
)
from mm1_pipeline.training.distributed import ALONE, World, gather, share
from mm1_pipeline.training.metrics import MetricsLog
from mm1_pipeline.training.random_state import random_state, restore_random_state
from mm1_pipeline.training.sharding import gather_state, restore_state
from mm1_pipeline.training.spikes import SpikeDetector

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})\.pt")

_CONTENT_KEYS = ("step", "num_rows", "state", "rng")

_TRAINER_KEYS = ("schedulers", "timestamp", "dataset_state")
"""Parts of Composer's state that are kept as Composer gives them.

The others are either set anew from the parameters or dangerous to load: Composer evaluates
the text under `algorithms` as Python.
"""

_SPIKES = "loss_spikes"

_STATE_KEYS = ("model", "optimizers", *_TRAINER_KEYS, _SPIKES)
"""Weights and optimizer state are kept whole and by name (see `sharding`), so that a training
goes on with another number of ranks."""


class BrokenCheckpointError(Exception):
    """A file that is no checkpoint of ours, or no longer."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, checking every byte, and never runs code from it.

    Only tensors and plain Python values are accepted, so a hostile file is refused before
    any of its instructions run. PyTorch does not check the archive's checksums itself, so a
    flipped bit in a weight would go unnoticed; here it does not.

    Args:
        path: a file written by `CheckpointStore.save`.

    Returns:
        `{"step": int, "num_rows": int, "state": {...}, "rng": [...]}` on the CPU.

    Raises:
        BrokenCheckpointError: truncated, damaged, hostile or of another layout.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise BrokenCheckpointError(f"the checksum of its part {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (BrokenCheckpointError, OSError, MemoryError):
        raise  # the last two say that reading failed, not that the file is broken
    except Exception as error:  # what a reader raises on a damaged file is not documented
        raise BrokenCheckpointError(_first_line(error)) from error
    if not _has_our_layout(content):
        raise BrokenCheckpointError(f"it does not hold {', '.join(_CONTENT_KEYS)}")
    return content


class CheckpointStore:
    """The checkpoints of one training in one directory.

    Args:
        directory: made if missing; nothing else writes here.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        assert keep >= 1
        self.directory = directory
        self.keep = keep
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps lies."""
        return self.directory / f"step-{step:08d}.pt"

    def steps(self) -> list[int]:
        """Steps of which a checkpoint exists, rising."""
        names = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest_path(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(self, step: int, content: dict[str, Any]) -> Path:
        """Writes a checkpoint in one step and drops those that are too old.

        Until the new one is complete, on disk and known to be readable, the file has another
        name and the old ones stay.

        Args:
            step: optimizer steps done.
            content: tensors and plain Python values under `num_rows`, `state` and `rng`.
        """
        final = self.path(step)
        temporary = final.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save({"step": step, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        # Memory-mapped, this reads the structure only: whether it loads, not every byte.
        torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
        os.replace(temporary, final)
        _sync_directory(self.directory)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()
        return final

    def newest_good(self) -> dict[str, Any] | None:
        """Loads the newest checkpoint that is whole and sets broken ones aside.

        A broken file is renamed to `<name>.broken`, with a warning, so that it is neither
        tried again nor lost. Halves left by a killed run are deleted.

        Returns:
            What `load_checkpoint` gives, or None when there is nothing to resume from.
        """
        for leftover in self.directory.glob("*.tmp"):
            leftover.unlink()
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                content = load_checkpoint(path)
                if content["step"] != step:
                    raise BrokenCheckpointError(f"it holds step {content['step']}")
            except BrokenCheckpointError as error:
                aside = path.with_name(f"{path.name}.broken")
                os.replace(path, aside)
                logger.warning(
                    "Checkpoint %s cannot be read (%s). Set aside as %s; resuming from an older "
                    "one, if there is one.",
                    path,
                    error,
                    aside.name,
                )
            else:
                return content
        return None


class Checkpointing(Callback):
    """Resumes from a checkpoint and writes new ones, on any number of ranks.

    Composer's own loading is not used: it runs code from the file, and it does not restore
    the random state when a Streaming dataset resumes by itself.

    Args:
        store: where checkpoints lie.
        interval_steps: one is written every so many steps, and after the last step.
        num_steps: steps of the whole training.
        resume_from: what `CheckpointStore.newest_good` gave, on rank 0; None on others.
        log: metrics, whose rows up to a checkpoint must be on disk before it; None on other ranks.
        spikes: whose memory of losses is kept.
        world: rank 0 reads and writes for all.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        interval_steps: int,
        num_steps: int,
        resume_from: dict[str, Any] | None,
        log: MetricsLog | None,
        spikes: SpikeDetector,
        world: World = ALONE,
    ) -> None:
        self._store = store
        self._interval_steps = interval_steps
        self._num_steps = num_steps
        self._content = resume_from
        self._rng: Any = None
        self._log = log
        self._spikes = spikes
        self._world = world

    def after_load(self, state: State, logger: Logger) -> None:
        """Puts the checkpoint into the trainer, at the place where Composer would."""
        content, self._content = self._content, None  # frees the copy of the weights
        if not share(content is not None):
            return
        whole = content["state"] if content else None
        restore_state(state.model, state.optimizers[0], whole)
        parts: dict[str, Any] = {}
        if content:
            parts = {key: content["state"][key] for key in (*_TRAINER_KEYS, _SPIKES)}
            parts["rng"] = content["rng"]
        parts = share(parts)
        self._rng = parts.pop("rng")
        self._spikes.load_state_dict(parts.pop(_SPIKES))
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
        """Writes a checkpoint when one is due."""
        step = state.timestamp.batch.value
        if step % self._interval_steps and step != self._num_steps:
            return
        whole = gather_state(state.model, state.optimizers[0])
        rng = gather(random_state())
        if self._log is None:
            return
        self._log.sync()
        parts = {**whole, **_trainer_state(state), _SPIKES: self._spikes.state_dict()}
        self._store.save(step, {"num_rows": self._log.num_rows, "state": parts, "rng": rng})


def _trainer_state(state: State) -> dict[str, Any]:
    # Times are datetime objects, which the safe reader refuses, and resuming needs none.
    times = state.timestamp.state_dict()
    counts = {key: value for key, value in times.items() if not key.endswith("_wct")}
    return {
        "schedulers": {
            type(scheduler).__qualname__: scheduler.state_dict() for scheduler in state.schedulers
        },
        "timestamp": {type(state.timestamp).__qualname__: counts},
        "dataset_state": state._dataset_state_dict(),
    }


def _has_our_layout(content: Any) -> bool:
    if not isinstance(content, dict) or set(content) != set(_CONTENT_KEYS):
        return False
    state = content["state"]
    return isinstance(state, dict) and all(key in state for key in _STATE_KEYS)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _sync_directory(directory: Path) -> None:
    """Brings a rename to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
