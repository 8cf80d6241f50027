"""Learning-rate schedule: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mm1_pipeline.config.training import ScheduleConfig


def multiplier(step: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate that an optimizer step uses.

    With 4 warm-up steps of 10: steps 0-3 use 1/4, 2/4, 3/4 and 4/4 of the peak, then the
    cosine falls until step 9, the last one, uses `final_fraction`. The first step is not 0,
    which would waste a batch, and the peak and the end are both reached.

    Source: MM1, Pre-training (shape, 10 % of the peak at the end). Where the ends of the
    two parts lie to the step is our choice.

    Args:
        step: optimizer steps already done, from 0.
        config: warm-up and total in optimizer steps, and the end's share of the peak.

    Returns:
        A factor in 0..1; after the last step it stays at `final_fraction`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_steps = config.num_steps - config.warmup_steps
    if decay_steps == 0:  # Nothing but a warm-up: it has just reached the peak.
        return 1.0
    # The scheduler asks once more after the last step, for one that is never taken: hence min.
    progress = min(1.0, (step + 1 - config.warmup_steps) / decay_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_fraction + (1.0 - config.final_fraction) * cosine


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig) -> LambdaLR:
    """Ties the schedule to an optimizer whose learning rates are the peak; step it every step."""
    return LambdaLR(optimizer, lambda step: multiplier(step, config))
