"""One process's part of a training: from the last checkpoint to the last step."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console

from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.ground.formatting import compact
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.streams.leftovers import TemporaryFolder, remove_leftovers
from mm1_pipeline.streams.loader import build_loader
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.training.callbacks import (
    GradientGuard,
    LoaderGuard,
    LossMeter,
    MetricsRecorder,
    StepStamp,
)
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.compilation import compile_layers
from mm1_pipeline.training.device import peak_flops
from mm1_pipeline.training.distributed import ALONE, World, gather, share
from mm1_pipeline.training.engine import (
    Callback,
    Engine,
    EngineName,
    Plan,
    build_engine,
    choose_engine,
)
from mm1_pipeline.training.errors import TrainingStoppedError, TrainingTerminatedError
from mm1_pipeline.training.metrics import MetricsLog
from mm1_pipeline.training.optimizer import build_optimizer, peak_learning_rate
from mm1_pipeline.training.resuming import Checkpointing
from mm1_pipeline.training.schedule import build_scheduler
from mm1_pipeline.training.sharding import check_sharded, loss_factor
from mm1_pipeline.training.spikes import DivergenceDetector, SpikeDetector
from mm1_pipeline.training.termination import Termination, outlive_termination
from mm1_pipeline.training.watchdog import TrainingHangsError, Watchdog

logger = logging.getLogger(__name__)


class TrainingRun:
    """One process's part of a training, from the last checkpoint to the last step.

    Args:
        config: the training's parameters.
        objective: on rank 0 with its weights; on other ranks they may lie on `meta`.
        shards_dir: what `streams.shards.write_shards` made, verified.
        stage: names the metrics file and what is shown.
        work_dir: keeps checkpoints and metrics.
        device: from `choose_device`.
        world: this process among the others.
    """

    def __init__(
        self,
        config: TrainingConfig,
        objective: Objective,
        shards_dir: Path,
        *,
        stage: str,
        work_dir: Path,
        device: str,
        world: World = ALONE,
    ) -> None:
        self._config, self._objective, self._world = config, objective, world
        self._index = ShardIndex.read(shards_dir)
        self._shards_dir, self._stage, self._device = shards_dir, stage, device
        self._work_dir = work_dir
        self._engine_name: EngineName = choose_engine(config.engine)
        self._num_steps = config.schedule.num_steps
        self._store = CheckpointStore(work_dir / "checkpoints", keep=config.checkpoint.keep)
        self._checkpoint = self._store.newest_good() if world.leads else None
        self._first_step = share(self._checkpoint.state.step if self._checkpoint else 0)
        self._log = MetricsLog(metrics_file(work_dir, stage)) if world.leads else None
        self._rewind_log()
        self._display = Progress(
            stage,
            unit="steps",
            total=self._num_steps,
            done=self._first_step,
            log_seconds=60.0,
            log=None,
            has_thread=False,  # data workers are forked
            console=None if world.leads else Console(quiet=True),
        )
        self._loader_guard = LoaderGuard(
            num_steps=self._num_steps, batch_size=config.global_batch_size, world=world
        )
        self._termination = Termination()
        self._watchdog = Watchdog(config.timeouts.step_seconds, work_dir, rank=world.rank)

    def to_the_end(self) -> None:
        """Makes the remaining steps, leaving the trained weights in the objective."""
        self._display.start(self._what_starts())
        cache = None
        try:
            if self._world.local_rank == 0:
                # Nodes may share `work_dir`, but need not see each other's locks.
                number = self._world.rank // self._world.local_size
                parent = self._work_dir / "cache" / f"node-{number}"
                remove_leftovers(parent)
                cache = TemporaryFolder("cache", parent)
            paths = gather(None if cache is None else str(cache.path))
            leader = self._world.rank - self._world.local_rank
            self._fit(Path(paths[leader] or ""))
        except TrainingTerminatedError as end:
            self._display.stop()
            self._display.say(str(end))
            raise
        except KeyboardInterrupt:
            self._display.stop()
            self._display.say(f"interrupted after {self._display.elapsed}; {self._how_to_resume()}")
            raise
        finally:
            self._display.stop()
            if self._log is not None:
                self._log.close()
            if cache is not None:
                cache.close()
        rows = self._log.rows() if self._log is not None else []
        loss = f", loss {rows[-1]['loss']:.3f}" if rows else ""
        steps = self._num_steps - self._first_step
        self._display.say(f"finished {steps} steps in {self._display.elapsed}{loss}")

    def _fit(self, cache_dir: Path) -> None:
        engine = self._engine(cache_dir)
        try:
            check_sharded(self._objective, self._world)
            if self._first_step < self._num_steps:
                with self._termination.noted():
                    engine.fit()
            self._loader_guard.check_complete(engine.state)
        except TrainingHangsError:
            raise TrainingStoppedError(self._watchdog.message) from None
        finally:
            self._watchdog.stop()
            engine.close()

    def _rewind_log(self) -> None:
        """Brings the metrics back to the checkpoint."""
        if self._log is None:
            return
        self._log.rewind(self._first_step)
        expected = self._checkpoint.state.num_rows if self._checkpoint else 0
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

    def _engine(self, cache_dir: Path) -> Engine:
        config = self._config
        optimizer = build_optimizer(self._objective, config.optimizer, self._peak_learning_rate())
        if config.compile:
            compile_layers(self._objective)
        loader = build_loader(
            self._shards_dir,
            config.mixture,
            num_steps=self._num_steps,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            rank=self._world.rank,
            num_ranks=self._world.size,
            num_workers=config.num_workers,
            cache_dir=cache_dir,
            timeout_seconds=config.timeouts.loader_seconds,
            start_worker=outlive_termination,
        )
        plan = Plan(
            loader,
            num_steps=self._num_steps,
            microbatch_size=config.microbatch_size or config.global_batch_size,
            callbacks=self._callbacks(),
            seed=config.seed,
            device=self._device,
            is_bfloat16=config.precision == "bfloat16",
            loss_factor=loss_factor(),
            world=self._world,
            stage=self._stage,
            collective_seconds=config.timeouts.collective_seconds,
        )
        scheduler = build_scheduler(optimizer, config.schedule)
        return build_engine(self._engine_name, self._objective, optimizer, scheduler, plan)

    def _callbacks(self) -> list[Callback]:
        """In the order in which they run at every event."""
        config, world = self._config, self._world
        streams = tuple(config.mixture.streams)
        meter = LossMeter(streams)
        spikes = SpikeDetector(config.loss_spikes)
        divergence = DivergenceDetector(config.divergence) if config.divergence else None
        peak = peak_flops(self._device, config.precision)
        guard = GradientGuard(
            config.optimizer.max_grad_norm,
            meter=meter,
            store=self._store,
            work_dir=self._work_dir,
            spikes=spikes,
            divergence=divergence,
            world=world,
        )
        checkpointing = Checkpointing(
            self._store,
            interval_steps=config.checkpoint.interval_steps,
            interval_minutes=config.checkpoint.interval_minutes,
            num_steps=self._num_steps,
            resume_from=self._checkpoint,
            log=self._log,
            spikes=spikes,
            divergence=divergence,
            world=world,
            termination=self._termination,
        )
        self._checkpoint = None  # the callback frees it once it is in the model
        recorder = MetricsRecorder(
            self._log,
            self._display if world.leads else None,
            meter=meter,
            guard=guard,
            streams=streams,
            pad_id=self._index.special_ids["pad"],
            image_id=self._index.special_ids["image"],
            interval_steps=config.log_interval_steps,
            num_steps=self._num_steps,
            spikes=spikes,
            count_flops=self._objective.count_flops,
            peak_flops=None if peak is None else peak * world.size,
        )
        guards = [self._watchdog, self._loader_guard, StepStamp(), meter, guard]
        return [*guards, checkpointing, recorder]

    def _peak_learning_rate(self) -> float:
        return peak_learning_rate(self._config.optimizer, self._objective.law_parameters)

    def _what_starts(self) -> str:
        config, law_parameters = self._config, self._objective.law_parameters
        parameters = sum(parameter.numel() for parameter in self._objective.parameters())
        of_law = (
            f" (decoder without embeddings: {compact(law_parameters)})" if law_parameters else ""
        )
        positions = config.global_batch_size * self._index.packing.sequence_length
        size = self._world.size
        sharded = f", weights sharded over {size} processes" if size > 1 else ""
        resuming = f", resuming after step {self._first_step}" if self._first_step else ""
        return (
            f"training {compact(parameters)} parameters{of_law}, peak learning rate "
            f"{self._peak_learning_rate():.2e}, {self._num_steps} steps of "
            f"{config.global_batch_size} sequences ({compact(positions)} positions), "
            f"on {self._device} in {config.precision} by {self._engine_name}{sharded}{resuming}"
        )


def metrics_file(work_dir: Path, stage: str) -> Path:
    """Where a training's rows are kept while it runs."""
    return work_dir / f"training_{stage}.jsonl"
