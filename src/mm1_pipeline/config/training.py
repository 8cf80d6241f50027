"""Parameters of every training stage, and MM1's learning-rate law."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from mm1_pipeline.config._base import (
    MOST,
    NULL_REMOVES,
    Count,
    Epsilon,
    LearningRate,
    Name,
    Number,
    Positive,
    Seconds,
    Seed,
    Share,
    Weight,
    Workers,
    bounds,
    only,
    operational,
    parameters,
)

_Momentum = Annotated[float, bounds(ge=0, lt=1)]


@parameters
class LearningRateLaw:
    """Peak learning rate from the decoder's size: eta = exp(slope ln N + intercept).

    Source: MM1, Pre-training. The lab's `lr_law` fits these two numbers anew.
    """

    slope: Annotated[float, bounds(ge=-10, le=10)] = -0.4214
    intercept: Annotated[float, bounds(ge=-100, le=100)] = -0.5535

    def peak_learning_rate(self, non_embedding_parameters: int) -> float:
        """Peak learning rate for a decoder of N non-embedding parameters."""
        return math.exp(self.slope * math.log(non_embedding_parameters) + self.intercept)


class OptimizerKind(StrEnum):
    """How gradients become updates."""

    ADAMW = "adamw"
    """Adam with decoupled weight decay: pre-training's."""
    ADAFACTOR = "adafactor"
    """Second moments of matrices as a row and a column: SFT's, and little memory."""


@parameters
class AdafactorConfig:
    """What only AdaFactor has. The paper names the optimizer and no more: our choice, the values
    of Shazeer and Stern (2018, arXiv 1804.04235).
    """

    decay_exponent: Annotated[float, bounds(gt=0, le=1)] = 0.8
    """The second moments' average forgets by 1 - t ** -exponent at step t."""
    clipping_threshold: Positive = 1.0
    """Root mean square of a tensor's update above which it is scaled down."""
    scale_by_parameter: bool = False
    """Multiplies a tensor's update by the root mean square of its weights (at least 1e-3). Off,
    the learning rate is the size of a step, as AdamW's is. Unconfirmed which one MM1 means."""


@parameters
class OptimizerConfig:
    """AdamW or AdaFactor, with decoupled weight decay.

    Source: MM1, Pre-training (AdamW, weight decay 0.1 eta, clipping 1.0) and SFT (AdaFactor). The
    betas and epsilon are not in the paper: our choice.
    """

    kind: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: LearningRate | None = None
    """Peak learning rate; None takes it from the law."""
    law: LearningRateLaw = LearningRateLaw()
    weight_decay: Annotated[float, bounds(ge=0, le=1_000)] = 0.1
    """In units of the learning rate: a step shrinks a weight by eta_t * weight_decay."""
    betas: tuple[_Momentum, _Momentum] = (0.9, 0.95)
    """AdamW's."""
    epsilon: Epsilon = 1e-8
    """AdamW's."""
    adafactor: AdafactorConfig = AdafactorConfig()
    max_grad_norm: Positive = 1.0


@parameters
class ScheduleConfig:
    """Linear warm-up, then a cosine down to a share of the peak.

    Source: MM1, Pre-training (2,000 warm-up steps, 200k steps, 10 % of the peak).
    """

    num_steps: Count = 200_000
    warmup_steps: Number = 2_000
    final_fraction: Share = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps > self.num_steps:
            raise ValueError(
                f"warmup_steps: found {self.warmup_steps}, expected 0.."
                f"{self.num_steps} (num_steps)."
            )


@parameters
class StreamMixture:
    """One stream of the mixture and what it is drawn from."""

    share: Annotated[float, bounds(gt=0, le=1)]
    """Share of the sequences of every global batch; a stream without any is removed instead."""
    sources: Annotated[dict[Name, Positive], NULL_REMOVES]
    """Weight of each source inside the stream; weights are normalised."""


@parameters
class MixtureConfig:
    """Which sequences a global batch holds.

    Source: MM1, Pre-training (caption : interleaved : text = 45 : 45 : 10, by sequence).
    Weights inside a stream are our choice.
    """

    streams: Annotated[dict[Name, StreamMixture], NULL_REMOVES]

    def __post_init__(self) -> None:
        total = sum(stream.share for stream in self.streams.values())
        if not self.streams or abs(total - 1.0) > 1e-9:
            shares = {name: stream.share for name, stream in self.streams.items()}
            raise ValueError(f"streams: found shares {shares}, expected some that sum to 1.")
        for name, stream in self.streams.items():
            if not stream.sources:
                raise ValueError(f"streams.{name}.sources: found none, expected at least one.")


@parameters
class CheckpointConfig:
    """How often a training can be resumed from, and how much disk that takes."""

    interval_steps: Count = operational(default=1_000)
    interval_minutes: Positive | None = operational(default=None)
    """One is written as well after the step at which the last is so old; the first rank's clock
    decides. Other moments change nothing of what is trained."""
    keep: Count = operational(default=2)
    """Newest checkpoints kept while training runs."""


@parameters
class LossSpikeConfig:
    """What happens when a step's loss leaps away from those before it.

    A step's score is how many robust standard deviations (1.4826 times the median distance
    from the median) its loss lies above the median of the last `window_steps` steps; there is
    none until as many are known. The paper does not say what MM1 did: our choice.
    """

    action: Literal["warn", "skip", "stop"] = "warn"
    """`skip` leaves the step's gradient out; `stop` ends the training before the step."""
    threshold: Positive = 10.0
    window_steps: Annotated[int, bounds(ge=4, le=MOST)] = 100
    """A short window takes ordinary noise for spikes."""


@parameters
class DivergenceConfig:
    """When a training that gets worse for good is stopped.

    It is when the loss has been above `factor` times its lowest value for `patience_steps` steps
    in a row. A loss that is not finite stops it at once, whatever stands here. Nothing of this
    changes a step: a training that ends has the weights it would have had. Our choice: in the 153
    trainings of docs/experiments/2026-11-25-small-lab-600-steps no logged loss of the 14,075 is
    above 3 times its minimum with this floor; without it, fine-tuning on short answers is for up
    to three rows in a row.
    """

    factor: Annotated[float, bounds(gt=1, le=1e9)] = 3.0
    patience_steps: Count = 20
    floor: Weight = 0.5
    """A lower minimum counts as this much: near 0 a loss doubles by chance."""


@parameters
class TimeoutConfig:
    """How long silence may last before a training stops rather than hangs, in seconds."""

    loader_seconds: Seconds = operational(default=1_800.0)
    """Of a process that reads data."""
    collective_seconds: Seconds = operational(default=1_800.0)
    """Of another rank; it must be longer than writing a checkpoint takes."""
    step_seconds: Seconds = operational(default=3_600.0)
    """Of the whole step, a checkpoint written after it included."""


MIXTURE_FIELDS = ("mixture", "schedule.num_steps", "global_batch_size", "seed")
"""Of a training: what the order of its sequences depends on."""


@parameters
class TrainingConfig:
    """Parameters of one training, the same for every stage."""

    mixture: MixtureConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    loss_spikes: LossSpikeConfig = LossSpikeConfig()
    divergence: DivergenceConfig | None = operational(default=DivergenceConfig())
    """When it is stopped for its losses; null never stops it while they are finite."""
    timeouts: TimeoutConfig = operational(default=TimeoutConfig())
    global_batch_size: Count = 512
    """Sequences in one optimizer step, over all ranks."""
    seed: Seed = 0
    microbatch_size: Count | None = operational(default=None)
    """Sequences in one forward pass; None takes as many of a rank's as a GPU's memory holds, and
    all of them on a CPU."""
    num_workers: Annotated[int, bounds(ge=0, le=1_024)] = operational(default=0)
    """Processes that read and decode, a rank."""
    log_interval_steps: Count = operational(default=1)
    device: Literal["auto", "cpu", "cuda"] = operational(default="auto")
    """Where to train; `auto` takes a GPU if there is one."""
    num_processes: Workers | None = operational(default=None)
    """Processes that train together on this node, each with a device of its own; None takes one
    a GPU (as many as divide the batch), and one on a CPU. Weights are sharded over them."""
    engine: Literal["auto", "composer", "torch"] = operational(default="auto")
    """Loop that trains: Composer's or our own; `auto` takes Composer where it is installed and says
    that it works with this torch. Both give the same bits on a CPU and go on from each other's
    checkpoints, so it is operational."""
    compile: bool = operational(default=False)
    """Compiles feed-forward and encoder layers. Like another device, it reorders roundings and
    changes no result beyond them, so it is operational; a compiler has to be installed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights stay float32. On a CPU with bfloat16 instructions
    (AVX512-BF16, AMX) `bfloat16` is faster as well, without them it is slower."""

    def mixture_part(self) -> TrainingConfig:
        """What the order of the sequences depends on."""
        return only(self, *MIXTURE_FIELDS)
