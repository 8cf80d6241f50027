"""Starts the processes of a training on several devices, and ends them whatever happens.

The stage's node stays one process: it starts a worker a device, hands each the training, shows
what rank 0 shows, and waits. A launcher around `kedro run` would run the whole pipeline on every
rank; here only the training is.

Several machines: the node that runs the pipeline has NNODES, MASTER_ADDR, MASTER_PORT and a secret
set; on every other machine `python -m mm1_pipeline.training.launch` joins (see docs/training.md).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from mm1_pipeline import __version__
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.streams.leftovers import TemporaryFolder
from mm1_pipeline.training.authenticated import read_secret
from mm1_pipeline.training.checkpoints import CheckpointStore
from mm1_pipeline.training.errors import TrainingStoppedError, TrainingTerminatedError
from mm1_pipeline.training.job import (
    FileMeeting,
    Job,
    NetworkMeeting,
    Order,
    describe,
    frozen_weights,
    order_as_json,
)
from mm1_pipeline.training.nodes import (
    JOIN_SECONDS,
    TERMINATED,
    Joined,
    Leader,
    Node,
    interface_of,
    listen,
)
from mm1_pipeline.training.processes import WorkerProcesses
from mm1_pipeline.training.sharding import state_tensors


def launch(
    config: TrainingConfig,
    objective: Objective,
    shards_dir: Path,
    *,
    stage: str,
    work_dir: Path,
    device: Literal["cpu", "cuda"],
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
        num_processes: on every node.

    Raises:
        ValueError: as a worker raised it; the objective cannot be described; the machines do not
            fit each other.
        TrainingStoppedError: as a worker raised it, or one ended unexpectedly, with its last
            lines; a machine did not come or left.
    """
    weights_file = work_dir / "start.safetensors"
    job = Job(
        config=config,
        objective=describe(objective),
        frozen=frozen_weights(objective),
        weights_file=weights_file.absolute(),
        shards_dir=Path(shards_dir).absolute(),
        stage=stage,
        work_dir=Path(work_dir).absolute(),
        device=device,
    )
    node = Node.of_environment()
    lead = _lead_one_machine if node.count == 1 else _lead_several_machines
    try:
        weights_file.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in state_tensors(objective)},
            weights_file,
        )
        lead(job, node, num_processes)
    finally:
        weights_file.unlink(missing_ok=True)
        shutil.rmtree(work_dir / "cache", ignore_errors=True)
    _load_trained(objective, CheckpointStore(work_dir / "checkpoints", keep=config.checkpoint.keep))


def _lead_one_machine(job: Job, node: Node, num_processes: int) -> None:
    with (
        TemporaryFolder("meeting") as folder,
        WorkerProcesses(num_processes, job.device, job.work_dir / "logs", node=node) as workers,
    ):
        meeting = FileMeeting(file=folder / "ranks")
        workers.hand_over(order_as_json(Order(job=job, meeting=meeting)))
        workers.wait()


def _lead_several_machines(job: Job, node: Node, num_processes: int) -> None:
    others = Joined(
        listen(node.address, node.port),
        read_secret(),
        node,
        num_processes=num_processes,
        device=job.device,
        versions=_versions(),
    )
    with _until_all_end(others.end), listen(node.address, 0) as store:
        address, port = store.getsockname()[:2]
        order = order_as_json(Order(job=job, meeting=NetworkMeeting(address=address, port=port)))
        with WorkerProcesses(
            num_processes,
            job.device,
            job.work_dir / "logs",
            node=node,
            interface=interface_of(address),
            store_listener=store.fileno(),
        ) as workers:
            others.assign(order)
            workers.hand_over(order)
            workers.wait(others.check)


def join(timeout_seconds: float = JOIN_SECONDS) -> None:
    """Takes part in a training that another node leads, until it ends.

    How many processes run here, and on what, the leader says.

    Args:
        timeout_seconds: how long the leader may not be there yet.

    Raises:
        ValueError: the environment does not say where the leading node is, or has no secret.
        TrainingStoppedError: a worker of this node ended unexpectedly, or the leader went.
    """
    node = Node.of_environment()
    leader = Leader(
        node,
        read_secret(),
        versions=_versions(),
        num_gpus=torch.cuda.device_count(),
        timeout_seconds=timeout_seconds,
    )
    given = leader.assignment
    with (
        _until_all_end(leader.end),
        TemporaryFolder("join") as logs,
        WorkerProcesses(
            given.num_processes,
            given.device,
            logs / "logs",
            node=node,
            interface=interface_of(leader.own_address),
        ) as workers,
    ):
        workers.hand_over(given.order.encode())
        workers.wait(leader.check)


@contextlib.contextmanager
def _until_all_end(end: Callable[[str | None], None]) -> Iterator[None]:
    """Tells the other machines how this one's part went."""
    try:
        yield
    except TrainingTerminatedError:
        end(TERMINATED)
        raise
    except BaseException as error:
        end(str(error) or type(error).__name__)
        raise
    end(None)


def _versions() -> dict[str, str]:
    """What has to be the same on all machines."""
    return {"mm1_pipeline": __version__, "torch": torch.__version__}


def _load_trained(objective: nn.Module, store: CheckpointStore) -> None:
    checkpoint = store.newest_good()
    assert checkpoint is not None, "the workers have ended well, so the last step was saved"
    with torch.no_grad():
        for name, tensor in state_tensors(objective):
            tensor.copy_(checkpoint.model[name])


def main() -> None:
    """Joins the training of another node: `python -m mm1_pipeline.training.launch`."""
    parser = argparse.ArgumentParser(description="Take part in a training that another node leads.")
    parser.add_argument(
        "--wait-seconds",
        type=float,
        default=JOIN_SECONDS,
        help="how long the leading node may not be there yet (default: %(default).0f)",
    )
    arguments = parser.parse_args()
    try:
        if Node.of_environment().rank == 0:
            raise ValueError(
                "Found no NODE_RANK of 1 or more, expected NNODES, NODE_RANK, MASTER_ADDR and "
                "MASTER_PORT; see docs/training.md."
            )
        join(arguments.wait_seconds)
    except (ValueError, TrainingStoppedError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
