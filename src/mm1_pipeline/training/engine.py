"""What drives a training: a loop, Composer's or our own, and the events that both of them call.

Callbacks know neither. An engine puts weights on their devices, reads batches, adds up the
gradients of microbatches and steps the optimizer; on a CPU both give the same bits.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from packaging.requirements import Requirement
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mm1_pipeline.models.objective import ObjectiveOutput
from mm1_pipeline.training.adapter import TrainableObjective
from mm1_pipeline.training.distributed import ALONE, World

logger = logging.getLogger(__name__)

EngineName = Literal["composer", "torch"]


@dataclass
class LoopState:
    """Where a training is; callbacks read it, and the one that resumes sets it."""

    objective: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    dataset: Any
    """Keeps the place in the data: `state_dict(num_samples, from_beginning)`, `load_state_dict`."""
    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Sequences read, over all ranks."""
    targets: int = 0
    """Targets among them."""
    batch: dict[str, Any] = field(default_factory=dict)
    """This rank's batch, on the CPU; from `after_loss` on the device, and one microbatch of it."""
    output: ObjectiveOutput | None = None
    """Of the last microbatch."""


class Callback:
    """What is done at the events of a loop, in this order; what is not overridden does nothing."""

    def after_load(self, state: LoopState) -> None:
        """Weights and optimizer are on their devices: the place to put a checkpoint into them."""

    def fit_start(self, state: LoopState) -> None:
        """The first batch will be read."""

    def after_dataloader(self, state: LoopState) -> None:
        """A batch was read and counted."""

    def batch_start(self, state: LoopState) -> None:
        """Its step begins."""

    def after_loss(self, state: LoopState) -> None:
        """The forward pass of a microbatch was made."""

    def after_train_batch(self, state: LoopState) -> None:
        """All gradients are there, and the optimizer has not stepped."""

    def batch_end(self, state: LoopState) -> None:
        """The optimizer and the schedule have stepped, and the step is counted."""

    def batch_checkpoint(self, state: LoopState) -> None:
        """Runs after every `batch_end`."""

    def data_end(self, state: LoopState) -> None:
        """The loader has no more batches."""

    def close(self, state: LoopState) -> None:
        """The training ends, well or not."""


@dataclass(frozen=True)
class Plan:
    """What a loop has to know beside weights and their optimizer."""

    loader: Iterable[dict[str, Any]]
    """Yields this rank's rows of each batch; has a `dataset`."""
    num_steps: int
    microbatch_size: int
    """Sequences in one forward pass; a larger number than a batch has takes it whole."""
    callbacks: Sequence[Callback]
    """In the order in which they run at every event."""
    seed: int = 0
    """Of the random generators; each rank adds its number."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    is_bfloat16: bool = False
    """Whether matrix products are made in bfloat16."""
    loss_factor: float = 1.0
    """See `sharding.loss_factor`."""
    world: World = ALONE
    stage: str = "training"
    collective_seconds: float = 1_800.0
    """Longest wait for another rank."""

    def trainable(self, objective: Any, *, is_cast: bool = True) -> TrainableObjective:
        """The objective with its loss, cast to bfloat16 if it is wanted and not done elsewhere."""
        autocast = self.device if self.is_bfloat16 and is_cast else None
        return TrainableObjective(objective, loss_factor=self.loss_factor, autocast=autocast)


class Engine(Protocol):
    """A loop that is ready: weights are on their devices, and a checkpoint is loaded."""

    state: LoopState

    def fit(self) -> None:
        """Makes the steps that are left."""
        ...

    def close(self) -> None:
        """Frees what it holds, however the training ended."""
        ...


def choose_engine(wanted: Literal["auto", "composer", "torch"]) -> EngineName:
    """Which loop trains.

    Args:
        wanted: `auto` takes Composer where it is installed and says that it works with this torch,
            and our own loop everywhere else; `composer` takes it against its own word.

    Raises:
        ValueError: Composer is asked for and cannot be imported.
    """
    if wanted == "torch":
        return "torch"
    level = logging.DEBUG
    try:
        version = importlib.metadata.version("mosaicml")
    except importlib.metadata.PackageNotFoundError:
        version, problem = None, "Composer (mosaicml) is not installed"
    else:
        limits = wanted == "auto" and _unmet_limits()
        problem = f"Composer {version} works with torch {limits} by its own word" if limits else ""
    if version is not None and not problem:
        try:
            _import_composer()
        except Exception as error:  # whatever an import of others' code may raise
            problem = f"Composer {version} cannot be imported ({type(error).__name__}: {error})"
            level = logging.WARNING
        else:
            return "composer"
    if wanted == "composer":
        raise ValueError(
            f"engine: found composer, but {problem}, and torch is {torch.__version__}. Expected "
            "torch or auto, which give the same losses, or the torch that Composer asks for: the "
            "extra `composer` (Python 3.11 or 3.12), or `make setup STACK=pinned` in a checkout."
        )
    logger.log(level, "%s; trainings take the engine torch.", problem)
    return "torch"


def build_engine(
    name: EngineName, objective: Any, optimizer: Optimizer, scheduler: LRScheduler, plan: Plan
) -> Engine:
    """Makes a loop ready, up to and with the event `after_load`.

    Args:
        name: from `choose_engine`.
        objective: trained in place; with several ranks its weights may lie on `meta` on all but
            the first, and are sharded.
        optimizer: of its weights, without state.
        scheduler: of the optimizer.
        plan: everything else.
    """
    # By statements: of a module that is named by a value, staleness has to take any one as meant.
    if name == "composer":
        from mm1_pipeline.training.composer_engine import ComposerEngine

        return ComposerEngine(objective, optimizer, scheduler, plan)
    from mm1_pipeline.training.torch_engine import TorchEngine

    return TorchEngine(objective, optimizer, scheduler, plan)


def _import_composer() -> None:
    from mm1_pipeline.training import composer_engine  # noqa: F401


def _unmet_limits() -> str | None:
    """Composer's own limits of torch's version, if the installed one is outside them."""
    for text in importlib.metadata.requires("mosaicml") or []:
        needed = Requirement(text)
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if needed.name == "torch" and applies:
            inside = needed.specifier.contains(torch.__version__, prereleases=True)
            return None if inside else str(needed.specifier)
    return None
