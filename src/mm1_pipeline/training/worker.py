"""One rank of a training: `python -m mm1_pipeline.training.worker`, started by `launch`.

Every rank gets its order from its parent over its own pipe. A worker ends with its parent: the
pipe closes, and its whole process group goes.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from mm1_pipeline.ground.processes import end_with_parent
from mm1_pipeline.streams.shard_index import verify_shards
from mm1_pipeline.training.distributed import World, begin_together, once_a_node
from mm1_pipeline.training.errors import TrainingTerminatedError
from mm1_pipeline.training.job import (
    FileMeeting,
    Job,
    NetworkMeeting,
    build_without_weights,
    order_of_json,
)
from mm1_pipeline.training.nodes import JOIN_SECONDS
from mm1_pipeline.training.run import TrainingRun
from mm1_pipeline.training.sharding import state_tensors


def main() -> None:
    """Runs this rank to the end; an error is written where the parent looks."""
    try:
        _run_rank(World.of_environment())
    except TrainingTerminatedError as end:
        _end(end, 128 + signal.SIGTERM)
    except Exception as error:
        traceback.print_exc()
        _end(error, 1)


def _end(error: BaseException, status: int) -> NoReturn:
    details = {"kind": type(error).__name__, "message": str(error)}
    Path(os.environ["MM1_ERROR_FILE"]).write_text(json.dumps(details), encoding="utf-8")
    sys.stderr.flush()
    # Not sys.exit: threads of collectives that wait for other ranks would keep it alive.
    os._exit(status)


def _run_rank(world: World) -> None:
    pipe = sys.stdin.buffer
    order = order_of_json(pipe.read(int.from_bytes(pipe.read(8), "big")))
    end_with_parent(pipe)
    job = order.job
    if job.device == "cuda":
        torch.cuda.set_device(world.local_rank)
    begin_together(
        world,
        "nccl" if job.device == "cuda" else "gloo",
        _store(order.meeting, world),
        timeout_seconds=job.config.timeouts.collective_seconds,
    )
    try:
        _train(job, world)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(meeting: FileMeeting | NetworkMeeting, world: World) -> Store:
    """Where the ranks find each other's addresses; no order and no object passes through it."""
    timeout = datetime.timedelta(seconds=JOIN_SECONDS)
    if isinstance(meeting, FileMeeting):
        store = FileStore(str(meeting.file), world.size)
        store.set_timeout(timeout)
        return store
    return TCPStore(
        meeting.address,
        meeting.port,
        world.size,
        is_master=world.leads,
        timeout=timeout,
        # The launcher's own socket, which listens at one address; torch's would at all of them.
        master_listen_fd=int(os.environ["MM1_STORE_LISTENER"]) if world.leads else None,
        use_libuv=False,  # the other implementation takes no socket
    )


def _train(job: Job, world: World) -> None:
    objective = build_without_weights(job)
    if world.rank >= world.local_size:  # the first node's launcher has verified its own
        once_a_node(world, lambda: verify_shards(job.shards_dir))
    else:
        once_a_node(world, lambda: None)
    if world.leads:  # the others get their weights when they are sharded
        objective.to_empty(device="cpu")
        with safe_open(job.weights_file, framework="pt") as file, torch.no_grad():
            for name, tensor in state_tensors(objective):
                tensor.copy_(file.get_tensor(name))
    TrainingRun(
        job.config,
        objective,
        job.shards_dir,
        stage=job.stage,
        work_dir=job.work_dir,
        device=job.device,
        world=world,
    ).to_the_end()


if __name__ == "__main__":
    main()
