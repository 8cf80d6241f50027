"""One training, for every stage: from shards and an objective to weights and their metrics."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.shard import shape_problems
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.ground.files import read_json, write_json
from mm1_pipeline.ground.identity import differences, result_values
from mm1_pipeline.models import initialization
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.objective import Objective, ShardNeeds
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shard_index import ShardIndex, verify_shards
from mm1_pipeline.training.authenticated import read_secret
from mm1_pipeline.training.device import choose_device, choose_microbatch_size, choose_num_processes
from mm1_pipeline.training.distributed import check_single_process
from mm1_pipeline.training.engine import choose_engine
from mm1_pipeline.training.launch import launch
from mm1_pipeline.training.metrics import MetricsLog, Row
from mm1_pipeline.training.nodes import Node, num_nodes
from mm1_pipeline.training.optimizer import peak_learning_rate
from mm1_pipeline.training.run import TrainingRun, metrics_file

__all__ = ["build_model", "check_needs", "choose_device", "train"]

logger = logging.getLogger(__name__)


def build_model(config: MM1Config, shards_dir: Path, *, seed: int) -> MM1:
    """A new model with random weights for the tokens and images of these shards.

    Args:
        config: the model's shape.
        shards_dir: what `streams.shards.write_shards` made.
        seed: of the weights; equal seeds give equal weights.

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
    for problem in shape_problems(
        "shard",
        index.packing,
        index.image,
        image_tokens=needs.image_tokens,
        image_size=needs.image_size,
    ):
        raise ValueError(problem)


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
    CPU in one process), whichever engine goes on.

    With one device the training runs here; with several, a process is started for each (see
    `launch`), and the weights are brought back here when they are done.

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
    if num_nodes() > 1:  # what is missing is said before shards are read
        Node.of_environment()
        read_secret()
    device = choose_device(config)
    num_processes = choose_num_processes(config, device)
    # Chosen once for all ranks, of which some machine may have no Composer.
    config = dataclasses.replace(config, engine=choose_engine(config.engine))
    index = ShardIndex.read(shards_dir)
    check_needs(objective.needs, index)
    _check_objective(config, objective)
    microbatch = choose_microbatch_size(
        config,
        objective,
        index.packing,
        device=device,
        num_ranks=num_processes * num_nodes(),
    )
    config = dataclasses.replace(config, microbatch_size=microbatch)
    logger.info("%s: checks every byte of the shards, then makes its first step", stage)
    verify_shards(shards_dir)
    mixture = MixtureSnapshot.of_training(config, shards_dir).describe()
    _check_mixture(mixture, expected_mixture)
    work_dir.mkdir(parents=True, exist_ok=True)
    parameters = {
        "training": result_values(config),
        "objective": type(objective).__name__,
        "model": result_values(objective.config),
        "mixture": mixture["sha256"],
    }
    _check_identity(work_dir, parameters)
    where = {"stage": stage, "work_dir": work_dir, "device": device}
    if num_processes * num_nodes() == 1:
        TrainingRun(config, objective, shards_dir, **where).to_the_end()
    else:
        launch(config, objective, shards_dir, num_processes=num_processes, **where)
    objective.save(output_dir)
    return MetricsLog(metrics_file(work_dir, stage)).rows()


def _check_identity(work_dir: Path, wanted: dict[str, Any]) -> None:
    """Refuses to resume a training with parameters other than those it was begun with.

    The first call writes them beside the checkpoints; later ones compare.
    """
    file = work_dir / "identity.json"
    if not file.exists():
        write_json(file, wanted)
        return
    if found := list(differences(read_json(file), wanted)):
        raise ValueError(
            f"{work_dir}: found a training that was begun with other parameters "
            f"({'; '.join(found[:3])}), expected the same ones: resuming would mix two "
            "trainings. Give another work_dir, or delete this one to start anew."
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
