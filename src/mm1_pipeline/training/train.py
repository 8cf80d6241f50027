"""One training, for every stage: from shards and an objective to weights and their metrics."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.models import initialization
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.objective import Objective, ShardNeeds
from mm1_pipeline.streams.loader import build_loader
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shard_index import ShardIndex, verify_shards
from mm1_pipeline.training.adapter import TrainableObjective, data_spec
from mm1_pipeline.training.callbacks import (
    GradientGuard,
    LoaderGuard,
    LossMeter,
    MetricsRecorder,
    StepStamp,
)
from mm1_pipeline.training.checkpoints import Checkpointing, CheckpointStore
from mm1_pipeline.training.composer_api import Callback, Trainer
from mm1_pipeline.training.distributed import check_single_process
from mm1_pipeline.training.identity import check_identity, result_parameters
from mm1_pipeline.training.metrics import MetricsLog, Row
from mm1_pipeline.training.optimizer import build_optimizer, peak_learning_rate
from mm1_pipeline.training.progress import TrainingDisplay, compact
from mm1_pipeline.training.schedule import build_scheduler

logger = logging.getLogger(__name__)

_COMPOSER_PRECISIONS = {"float32": "fp32", "bfloat16": "amp_bf16"}
_COMPOSER_DEVICES = {"cpu": "cpu", "cuda": "gpu"}


def build_model(config: MM1Config, shards_dir: Path, *, seed: int) -> MM1:
    """A new model with random weights for the tokens and images of these shards.

    Args:
        config: the model's shape.
        shards_dir: what `streams.shards.write_shards` made.
        seed: of the weights.

    Raises:
        ValueError: the shape does not fit the shards.
    """
    index = ShardIndex.read(shards_dir)
    needs = ShardNeeds(
        config.decoder.vocab_size, config.vision.image_size, config.connector.num_tokens
    )
    check_needs(needs, index)
    return initialization.build_model(config, index.special_ids["image"], seed=seed)


def check_needs(needs: ShardNeeds, index: ShardIndex) -> None:
    """Refuses a model that these shards were not made for.

    Raises:
        ValueError: naming the parameter of the model and that of the shards.
    """
    if needs.vocab_size is not None and needs.vocab_size < index.vocab_size:
        raise ValueError(
            f"model.decoder.vocab_size: found {needs.vocab_size}, but the tokenizer of the shards "
            f"has {index.vocab_size} tokens. Make it at least as large, or make the shards with a "
            "smaller tokenizer.vocab_size."
        )
    pairs = (
        ("connector.num_tokens", needs.image_tokens),
        ("vision.image_size", needs.image_size),
    )
    of_shards = (
        ("packing.image_tokens", index.packing.image_tokens),
        ("image.size", index.image.size),
    )
    for (name, found), (shard_name, expected) in zip(pairs, of_shards, strict=True):
        if found is not None and found != expected:
            raise ValueError(
                f"model.{name}: found {found}, but the shards were made with shard.{shard_name} "
                f"= {expected}. Make the two equal; the shards have to be made again if theirs "
                "changes."
            )


def train(
    config: TrainingConfig,
    objective: Objective,
    shards_dir: Path,
    *,
    stage: str,
    work_dir: Path,
    output_dir: Path,
    expected_mixture: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Trains an objective on packed sequences and writes its artifact where it is wanted.

    What can be wrong is checked before the first step: parameters, whether weights and shards
    fit, every byte of the shards. A call with the same arguments resumes a training that was
    stopped at any moment, and gives what it would have given uninterrupted (bit for bit on a
    CPU).

    Source: MM1, Pre-training (all weights are trained; AdamW, schedule, clipping).

    Args:
        config: the training's parameters.
        objective: trained in place; the weights it holds are the start.
        shards_dir: what `streams.shards.write_shards` made.
        stage: names the metrics file and what is shown.
        work_dir: keeps checkpoints and metrics while the training runs.
        output_dir: where `objective.save` writes.
        expected_mixture: description of the mixture that was planned, to be sure that the
            same one is trained on.

    Returns:
        A row for every logged step; what is under `timing` depends on the clock.

    Raises:
        ValueError: parameters, objective and shards do not fit each other, or `work_dir` holds
            another training.
        TrainingStoppedError: a loss is not finite, or the data ended early.
    """
    check_single_process()
    device = choose_device(config)
    index = ShardIndex.read(shards_dir)
    check_needs(objective.needs, index)
    _check_objective(config, objective)
    verify_shards(shards_dir)
    mixture = MixtureSnapshot.of_training(config, shards_dir).describe()
    _check_mixture(mixture, expected_mixture)
    work_dir.mkdir(parents=True, exist_ok=True)
    parameters = {
        "training": result_parameters(config),
        "objective": type(objective).__name__,
        "model": result_parameters(objective.config),
        "mixture": mixture["sha256"],
    }
    check_identity(work_dir, parameters)
    run = _Run(config, objective, index, shards_dir, stage=stage, work_dir=work_dir, device=device)
    rows = run.to_the_end()
    objective.save(output_dir)
    return rows


def choose_device(config: TrainingConfig) -> str:
    """Resolves `auto`, and refuses what the machine cannot do.

    Returns:
        `cpu` or `cuda`.

    Raises:
        ValueError: no GPU where one is asked for, or a precision that the device lacks.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("device: found cuda, but PyTorch sees no GPU; use cpu or auto.")
    device = "cuda" if has_gpu and config.device != "cpu" else "cpu"
    if config.precision == "bfloat16" and device == "cpu":
        raise ValueError(
            "precision: found bfloat16 on a CPU, expected float32; bfloat16 needs a GPU."
        )
    return device


class _Run:
    """One process's part of a training, from the last checkpoint to the last step."""

    def __init__(
        self,
        config: TrainingConfig,
        objective: Objective,
        index: ShardIndex,
        shards_dir: Path,
        *,
        stage: str,
        work_dir: Path,
        device: str,
    ) -> None:
        self._config, self._objective, self._index = config, objective, index
        self._shards_dir, self._stage, self._device = shards_dir, stage, device
        self._work_dir = work_dir
        self._cache_dir = work_dir / "cache"
        self._num_steps = config.schedule.num_steps
        self._store = CheckpointStore(work_dir / "checkpoints", keep=config.checkpoint.keep)
        self._checkpoint = self._store.newest_good()
        self._first_step = self._checkpoint["step"] if self._checkpoint else 0
        self._log = MetricsLog(work_dir / f"training_{stage}.jsonl")
        self._rewind_log()
        self._display = TrainingDisplay(
            stage, num_steps=self._num_steps, first_step=self._first_step
        )
        self._loader_guard = LoaderGuard(
            num_steps=self._num_steps, batch_size=config.global_batch_size
        )

    def to_the_end(self) -> list[Row]:
        """Makes the remaining steps, leaving the trained weights in the objective."""
        self._display.start(self._what_starts())
        try:
            self._fit()
        except KeyboardInterrupt:
            self._display.finish(
                f"interrupted after {self._display.elapsed}; {self._how_to_resume()}"
            )
            raise
        finally:
            self._display.stop()
            self._log.close()
            shutil.rmtree(self._cache_dir, ignore_errors=True)
        rows = self._log.rows()
        loss = f", loss {rows[-1]['loss']:.3f}" if rows else ""
        steps = self._num_steps - self._first_step
        self._display.finish(f"finished {steps} steps in {self._display.elapsed}{loss}")
        return rows

    def _fit(self) -> None:
        trainer = self._trainer()
        try:
            if self._first_step < self._num_steps:
                trainer.fit()
            self._loader_guard.check_complete(trainer.state)
        finally:
            trainer.close()

    def _rewind_log(self) -> None:
        """Brings the metrics back to the checkpoint."""
        self._log.rewind(self._first_step)
        expected = self._checkpoint["num_rows"] if self._checkpoint else 0
        if self._log.num_rows != expected:
            logger.warning(
                "%s: found %d rows up to step %d, expected %d. The metrics of those steps are "
                "lost; the training itself resumes exactly.",
                self._log.path,
                self._log.num_rows,
                self._first_step,
                expected,
            )

    def _how_to_resume(self) -> str:
        steps = self._store.steps()
        return f"the same call resumes after step {steps[-1]}" if steps else "no checkpoint yet"

    def _trainer(self) -> Trainer:
        config = self._config
        optimizer = build_optimizer(self._objective, config.optimizer, self._peak_learning_rate())
        loader = build_loader(
            self._shards_dir,
            config.mixture,
            num_steps=self._num_steps,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            num_workers=config.num_workers,
            cache_dir=self._cache_dir,
        )
        return Trainer(
            model=TrainableObjective(self._objective),
            train_dataloader=data_spec(loader, self._objective),
            max_duration=f"{self._num_steps}ba",
            optimizers=optimizer,
            schedulers=build_scheduler(optimizer, config.schedule),
            step_schedulers_every_batch=True,
            device=_COMPOSER_DEVICES[self._device],
            precision=_COMPOSER_PRECISIONS[config.precision],
            device_train_microbatch_size=config.microbatch_size or config.global_batch_size,
            accumulate_train_batch_on_tokens=True,
            seed=config.seed,
            run_name=self._stage,
            callbacks=self._callbacks(),
            progress_bar=False,
        )

    def _callbacks(self) -> list[Callback]:
        """In the order in which they run at every event."""
        config = self._config
        streams = tuple(config.mixture.streams)
        meter = LossMeter(streams)
        guard = GradientGuard(
            config.optimizer.max_grad_norm,
            meter=meter,
            store=self._store,
            work_dir=self._work_dir,
        )
        checkpointing = Checkpointing(
            self._store,
            interval_steps=config.checkpoint.interval_steps,
            num_steps=self._num_steps,
            resume_from=self._checkpoint,
            log=self._log,
        )
        self._checkpoint = None  # the callback frees it once it is in the model
        recorder = MetricsRecorder(
            self._log,
            self._display,
            meter=meter,
            guard=guard,
            streams=streams,
            pad_id=self._index.special_ids["pad"],
            image_id=self._index.special_ids["image"],
            interval_steps=config.log_interval_steps,
            num_steps=self._num_steps,
        )
        return [self._loader_guard, StepStamp(), meter, guard, checkpointing, recorder]

    def _peak_learning_rate(self) -> float:
        return peak_learning_rate(self._config.optimizer, self._objective.law_parameters)

    def _what_starts(self) -> str:
        config, law_parameters = self._config, self._objective.law_parameters
        parameters = sum(parameter.numel() for parameter in self._objective.parameters())
        of_law = (
            f" (decoder without embeddings: {compact(law_parameters)})" if law_parameters else ""
        )
        positions = config.global_batch_size * self._index.packing.sequence_length
        resuming = f", resuming after step {self._first_step}" if self._first_step else ""
        return (
            f"training {compact(parameters)} parameters{of_law}, peak learning rate "
            f"{self._peak_learning_rate():.2e}, {self._num_steps} steps of "
            f"{config.global_batch_size} sequences ({compact(positions)} positions), "
            f"on {self._device} in {config.precision}{resuming}"
        )


def _check_objective(config: TrainingConfig, objective: Objective) -> None:
    """Refuses what this objective cannot be trained with."""
    peak_learning_rate(config.optimizer, objective.law_parameters)
    size = config.microbatch_size
    if objective.compares_batch and size is not None and size < config.global_batch_size:
        raise ValueError(
            f"microbatch_size: found {size}, expected null or at least global_batch_size "
            f"({config.global_batch_size}): this objective compares all examples of a batch with "
            "each other, so microbatches would change what is learned. Use gradient "
            "checkpointing, or more ranks, to save memory."
        )


def _check_mixture(found: Mapping[str, Any], expected: Mapping[str, Any] | None) -> None:
    if expected is not None and found["sha256"] != expected["sha256"]:
        raise ValueError(
            f"Found a mixture with sha256 {found['sha256']}, expected the planned one, "
            f"{expected['sha256']}: parameters or shards changed since it was planned. Plan it "
            "again."
        )
