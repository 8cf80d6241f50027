"""One rank of a training: `python -m mm1_pipeline.training.worker`, started by `launch`.

Rank 0 reads the training from its parent over a pipe; the others, on whatever machine, get it
from rank 0. A worker ends with its parent: the pipe closes, and its whole process group goes.
"""

from __future__ import annotations

import datetime
import json
import os
import pickle
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch._C._distributed_c10d import PrefixStore, TCPStore

from mm1_pipeline.streams.shard_index import verify_shards
from mm1_pipeline.training.distributed import World, once_a_node
from mm1_pipeline.training.launch import Job
from mm1_pipeline.training.parent import end_with_parent
from mm1_pipeline.training.run import TrainingRun
from mm1_pipeline.training.sharding import state_tensors

_JOIN_SECONDS = 600.0
"""How long ranks wait for each other at the start."""


def main() -> None:
    """Runs this rank to the end; an error is written where the parent looks."""
    try:
        _run(World.of_environment(), os.environ["MM1_DEVICE"])
    except Exception as error:
        details = {"kind": type(error).__name__, "message": str(error)}
        Path(os.environ["MM1_ERROR_FILE"]).write_text(json.dumps(details), encoding="utf-8")
        traceback.print_exc()
        sys.stderr.flush()
        # Not sys.exit: threads of collectives that wait for other ranks would keep it alive.
        os._exit(1)


def _run(world: World, device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    pipe = sys.stdin.buffer
    job_bytes = pipe.read(int.from_bytes(pipe.read(8), "big")) if world.leads else None
    end_with_parent(pipe)
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world.size,
        is_master=world.leads,
        timeout=datetime.timedelta(seconds=_JOIN_SECONDS),
    )
    if job_bytes is not None:
        store.set("job", job_bytes)  # pyright: ignore[reportArgumentType]
    # Pickled by this program's own first process, and read by no other.
    job: Job = pickle.loads(store.get("job"))  # noqa: S301
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=PrefixStore("training", store),
        rank=world.rank,
        world_size=world.size,
        timeout=datetime.timedelta(seconds=job.config.timeouts.collective_seconds),
    )
    try:
        _train(job, world)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _train(job: Job, world: World) -> None:
    if world.rank >= world.local_size:  # the first node's launcher has verified its own
        once_a_node(world, lambda: verify_shards(job.shards_dir))
    else:
        once_a_node(world, lambda: None)
    if world.leads:
        _load_weights(job)
    TrainingRun(
        job.config,
        job.objective,
        job.shards_dir,
        stage=job.stage,
        work_dir=job.work_dir,
        device=job.device,
        world=world,
    ).to_the_end()


def _load_weights(job: Job) -> None:
    """Gives rank 0's weights their content; the others get theirs when they are sharded."""
    job.objective.to_empty(device="cpu")
    with safe_open(job.weights_file, framework="pt") as file, torch.no_grad():
        for name, tensor in state_tensors(job.objective):
            tensor.copy_(file.get_tensor(name))


if __name__ == "__main__":
    main()
