"""Our own loop: what the project uses of Composer's, on torch alone.

It makes the same numbers in the same order, so that on a CPU losses and weights have the same bits,
and a checkpoint of one engine is resumed by the other.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mm1_pipeline.training.adapter import NUM_TARGETS, prepare, split
from mm1_pipeline.training.distributed import sum_counts
from mm1_pipeline.training.engine import LoopState, Plan
from mm1_pipeline.training.sharding import shard


class TorchEngine:
    """A loop over batches: microbatches, their gradients added up, a step.

    Args:
        objective: trained in place.
        optimizer: of its weights, without state.
        scheduler: of the optimizer.
        plan: everything else.
    """

    def __init__(
        self, objective: Any, optimizer: Optimizer, scheduler: LRScheduler, plan: Plan
    ) -> None:
        self._plan = plan
        self._trainable = plan.trainable(objective)
        self._device = torch.device(plan.device)
        if plan.device == "cuda":
            self._device = torch.device("cuda", torch.cuda.current_device())
            # Composer's choice: float32 products of 10-bit mantissas, several times as fast.
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
        if plan.world.size > 1:
            shard(objective, optimizer, self._device)
        else:
            objective.to(self._device)
        dataset = getattr(plan.loader, "dataset", None)
        self.state = LoopState(objective, optimizer, scheduler, dataset)
        self._run("after_load")
        seed = plan.seed + plan.world.rank
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # a GPU's generator too

    def fit(self) -> None:
        """Makes the steps that are left."""
        state, objective = self.state, self.state.objective
        self._run("fit_start")
        objective.train()
        for batch in self._plan.loader:
            state.batch = prepare(batch, objective)  # pyright: ignore[reportArgumentType]
            self._run("after_dataloader")
            self._run("batch_start")
            counts = [len(state.batch["input_ids"]), state.batch[NUM_TARGETS]]
            num_samples, num_targets = sum_counts(counts)
            self._step(num_targets / self._plan.world.size)
            state.scheduler.step()
            state.step += 1
            state.samples += num_samples
            state.targets += num_targets
            self._run("batch_end")
            self._run("batch_checkpoint")
            if state.step >= self._plan.num_steps:
                return
        self._run("data_end")

    def close(self) -> None:
        """Tells the callbacks that the training ends."""
        self._run("close")

    def _step(self, mean_targets: float) -> None:
        """Makes a step.

        Args:
            mean_targets: of the batch's, a rank. Gradients are means over the ranks, so each
                microbatch's mean loss is weighted by its targets as a share of that.
        """
        state, whole = self.state, self.state.batch
        state.optimizer.zero_grad()
        parts = split(whole, self._plan.microbatch_size, state.objective)  # pyright: ignore
        for part in parts:
            state.batch = {
                key: value.to(self._device, non_blocking=True)
                if isinstance(value, Tensor)
                else value
                for key, value in part.items()
            }
            state.output = self._trainable(state.batch)
            loss = self._trainable.loss(state.output, state.batch)
            self._run("after_loss")
            (loss * (part[NUM_TARGETS] / mean_targets)).backward()
        state.batch = whole
        self._run("after_train_batch")
        state.optimizer.step()

    def _run(self, event: str) -> None:
        for callback in self._plan.callbacks:
            getattr(callback, event)(self.state)
