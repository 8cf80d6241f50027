"""Starts the processes of a training on several devices, and ends them whatever happens.

The stage's node stays one process: it starts a worker a device, hands rank 0 the training, shows
what rank 0 shows, and waits. A launcher around `kedro run` would run the whole pipeline on every
rank; here only the training is.

Several machines: the node that runs the pipeline has NNODES, MASTER_ADDR and MASTER_PORT set; on
every other machine `python -m mm1_pipeline.training.launch` joins (see docs/training.md).
"""

from __future__ import annotations

import argparse
import copy
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.processes import WorkerProcesses, node_rank, num_nodes
from mm1_pipeline.training.sharding import state_tensors


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; handed over a pipe, between processes of one program."""

    config: TrainingConfig
    objective: Objective
    """Without its weights."""
    weights_file: Path
    """Where rank 0 finds them."""
    shards_dir: Path
    stage: str
    work_dir: Path
    device: str


def launch(
    config: TrainingConfig,
    objective: Objective,
    shards_dir: Path,
    *,
    stage: str,
    work_dir: Path,
    device: str,
    num_processes: int,
) -> None:
    """Trains an objective on several processes and brings the weights back into it.

    Args:
        config: the training's parameters.
        objective: the weights it holds are the start; in the end, the trained ones.
        shards_dir: verified shards.
        stage: names the metrics file and what is shown.
        work_dir: keeps checkpoints, metrics and what every rank wrote.
        device: of every process.
        num_processes: on this node.

    Raises:
        ValueError: as a worker raised it.
        TrainingStoppedError: as a worker raised it, or one ended unexpectedly; with its last
            lines.
    """
    weights_file = work_dir / "start.safetensors"
    _save_weights(objective, weights_file)
    job = Job(
        config,
        _without_weights(objective),
        weights_file.absolute(),
        Path(shards_dir).absolute(),
        stage,
        Path(work_dir).absolute(),
        device,
    )
    try:
        with WorkerProcesses(num_processes, device, work_dir / "logs") as workers:
            workers.hand_over(pickle.dumps(job))
            workers.wait()
    finally:
        weights_file.unlink(missing_ok=True)
        shutil.rmtree(work_dir / "cache", ignore_errors=True)
    _load_trained(objective, CheckpointStore(work_dir / "checkpoints", keep=config.checkpoint.keep))


def join(num_processes: int, device: str) -> None:
    """Takes part in a training that another node leads, until it ends.

    Args:
        num_processes: on this node; the same on all.
        device: of every process.

    Raises:
        ValueError: the environment does not say where the leading node is.
        TrainingStoppedError: a worker of this node ended unexpectedly.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mm1-join-") as logs,
        WorkerProcesses(num_processes, device, Path(logs)) as workers,
    ):
        workers.wait()


def _save_weights(objective: nn.Module, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in state_tensors(objective)}, file
    )


def _without_weights(objective: Objective) -> Objective:
    """A copy whose weights lie on `meta`: a shape without content."""
    memo: dict[int, Any] = {}
    for _, tensor in state_tensors(objective):
        empty = torch.empty_like(tensor, device="meta")
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
    return copy.deepcopy(objective, memo)


def _load_trained(objective: nn.Module, store: CheckpointStore) -> None:
    content = store.newest_good()
    assert content is not None, "the workers have ended well, so the last step was saved"
    trained = content["state"]["model"]
    with torch.no_grad():
        for name, tensor in state_tensors(objective):
            tensor.copy_(trained[f"objective.{name}"])


def main() -> None:
    """Joins the training of another node: `python -m mm1_pipeline.training.launch`."""
    parser = argparse.ArgumentParser(description="Take part in a training that another node leads.")
    parser.add_argument("--num-processes", type=int, default=None, help="one a GPU by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    arguments = parser.parse_args()
    if num_nodes() < 2 or node_rank() == 0:
        parser.error("set NNODES, NODE_RANK (from 1), MASTER_ADDR and MASTER_PORT; see the docs")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    num_processes = arguments.num_processes or max(1, torch.cuda.device_count())
    join(num_processes, device)


if __name__ == "__main__":
    main()
