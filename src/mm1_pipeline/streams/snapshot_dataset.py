"""Reads the sequences of a mixture snapshot through Streaming, without its silent failures.

Streaming brings shards into a cache ahead of use and keeps the place to resume from. Three
things are done differently here:

- the order is the snapshot's, computed batch by batch; Streaming would build the order of the
  whole training as one array in shared memory (0.8 GB for MM1's 200k steps of 512);
- a shard that cannot be read ends the epoch early in Streaming, without an error, and may
  leave other workers waiting for ever; here it raises in every process that needs it;
- shared memory is freed with the dataset, leftovers of a killed run are removed where they
  are this run's own, and runs that start together do not mix theirs up: see `shared_memory`.

This leans on private methods of mosaicml-streaming 0.13.0; the tests fail if they change.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray
from streaming.base.constant import TICK
from streaming.base.dataset import StreamingDataset, _Iterator, _ShardState
from streaming.base.distributed import barrier
from streaming.base.stream import Stream
from streaming.base.world import World

from mm1_pipeline.streams.leftovers import hold, lock_of, one_run_at_a_time, remove_leftovers
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shard_index import Split, dataset_directory
from mm1_pipeline.streams.shared_memory import (
    blocks_of,
    others_closed,
    release,
    remove_blocks_of,
)

_CACHED_BATCHES = 32
"""Batches of ids kept: reading runs up to eight batches ahead of use."""


class SnapshotDataset(StreamingDataset):
    """This rank's part of every batch of a snapshot, in order.

    Args:
        shards_dir: The artifact of the stage `shard`.
        snapshot: The order of the training.
        cache_dir: Gets the uncompressed shards; belongs to this run alone and is emptied.

    Raises:
        ValueError: The ranks do not divide the batch.
    """

    def __init__(self, shards_dir: Path, snapshot: MixtureSnapshot, cache_dir: Path) -> None:
        world = World.detect()
        if snapshot.global_batch_size % world.num_ranks:
            raise ValueError(
                f"global_batch_size: found {snapshot.global_batch_size}, which "
                f"{world.num_ranks} ranks do not divide; use a number of devices that does."
            )
        self.snapshot = snapshot
        self.first_step = 0
        """Step that the next epoch starts with; `load_state_dict` moves it."""
        self._snapshot_sha256 = snapshot.describe()["sha256"]
        self._failure: BaseException | None = None
        with one_run_at_a_time(world.is_local_leader), others_closed():
            if world.is_local_leader:
                shutil.rmtree(cache_dir, ignore_errors=True)
                remove_blocks_of(cache_dir)
                remove_leftovers()
                # Not a field: a dataset may be sent to processes that read for it.
                weakref.finalize(self, hold(lock_of(cache_dir)).close)
            barrier()
            super().__init__(
                streams=[
                    Stream(
                        remote=str(dataset_directory(shards_dir, source, Split.TRAIN)),
                        local=str(dataset_directory(cache_dir, source, Split.TRAIN)),
                    )
                    for source in snapshot.source_names
                ],
                epoch_size=snapshot.num_steps * snapshot.global_batch_size,
                batch_size=snapshot.global_batch_size // world.num_ranks,
                num_canonical_nodes=1,
                validate_hash="xxh64",
                shuffle=False,
            )
        weakref.finalize(self, release, blocks_of(self), self._shm_prefix_int, os.getpid())
        found = tuple(self.samples_per_stream.tolist())
        assert found == snapshot.num_sequences, (found, snapshot.num_sequences)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the training is, and in which order of sequences."""
        state = super().state_dict(num_samples, from_beginning)
        # A training is one epoch; Streaming says -1 until the first batch is asked for.
        return {**state, "epoch": 0, "snapshot": self._snapshot_sha256}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Moves the start of the next epoch to where a training stopped.

        Raises:
            ValueError: The state belongs to another order, or is amid a batch.
        """
        if obj.get("snapshot") != self._snapshot_sha256:
            raise ValueError(
                f"Found a checkpoint of the mixture {obj.get('snapshot')}, expected "
                f"{self._snapshot_sha256}: parameters or shards have changed since. Start "
                "anew, or restore them."
            )
        step, rest = divmod(obj["sample_in_epoch"], self.snapshot.global_batch_size)
        if rest or obj["epoch"] != 0 or step > self.snapshot.num_steps:
            raise ValueError(
                f"Found a checkpoint at sample {obj['sample_in_epoch']} of epoch "
                f"{obj['epoch']}, expected a multiple of {self.snapshot.global_batch_size} up "
                f"to {self.epoch_size} in epoch 0: a training is one epoch."
            )
        self.first_step = step

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """The packed sequence, with its source and the index of its stream."""
        sample = super().get_item(sample_id, retry)
        shard, _ = self.spanner[sample_id]
        source = int(self.stream_per_shard[shard])
        sample["source"] = self.snapshot.source_names[source]
        sample["stream_id"] = int(self.snapshot.stream_of_source[source])
        return sample

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields this worker's sequences; raises where Streaming would just end."""
        yield from super().__iter__()
        if self._failure is not None:
            raise RuntimeError(
                f"A shard could not be read: {self._failure}. Check the disk, then run "
                "verify_shards; the training resumes from its last checkpoint."
            ) from self._failure

    def on_exception(self, future: Future) -> None:
        """Keeps the failure of a background thread, and stops the other one."""
        if failure := future.exception():
            self._failure = failure
            self._event.set()

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Brings a shard into the cache; a failure leaves it free to be tried by others."""
        try:
            super().prepare_shard(shard_id, blocking)
        except BaseException:
            if self._shard_states[shard_id] == _ShardState.PREPARING:
                self._shard_states[shard_id] = _ShardState.REMOTE
            raise

    def _prepare_thread(self, it: _Iterator) -> None:
        with _CountedExit(it):
            super()._prepare_thread(it)

    def _ready_thread(self, it: _Iterator) -> None:
        """Follows the shards of the next samples until each is there.

        Streaming's own waits for ever on a shard that another worker failed to bring; this
        one tries itself, and so fails as well.
        """
        assert self.predownload is not None, "Streaming sets it from the batch size"
        with _CountedExit(it):
            while it.ready_index < it.total and not (it.should_exit() or self._event.is_set()):
                if it.ready_index - it.yield_index > self.predownload or not self._is_here(
                    it.sample_ids[it.ready_index]
                ):
                    sleep(TICK)
                else:
                    it.ready_index += 1
            it.on_exit()

    def _is_here(self, sample_id: int) -> bool:
        """Whether the sample's shard is in the cache; if nobody brings it, brings it."""
        shard, _ = self.spanner[sample_id]
        if self._shard_states[shard] == _ShardState.REMOTE:
            self.prepare_shard(shard, blocking=False)
        return self._shard_states[shard] == _ShardState.LOCAL

    def _resume(self, world: World, epoch: int) -> tuple[int, int]:
        """Epoch and sample to start with.

        Streaming passes the place through shared memory, where a dead run's may lie as well;
        workers are started after `load_state_dict`, so they know it already.
        """
        return epoch, self.first_step * self.snapshot.global_batch_size

    def _get_work(self, epoch: int, sample_in_epoch: int) -> Any:
        if epoch != 0:
            raise RuntimeError(
                f"Found a second pass over the data (epoch {epoch}): a training is one epoch of "
                f"{self.snapshot.num_steps} steps. Build a new loader to start again."
            )
        return _LazyOrder(self, first_step=sample_in_epoch // self.snapshot.global_batch_size)


class _LazyOrder:
    """This worker's sample ids, computed as they are asked for.

    Worker w of W delivers every W-th batch, as the DataLoader collects them; a rank takes
    its contiguous rows of each.
    """

    def __init__(self, dataset: SnapshotDataset, first_step: int) -> None:
        world = dataset._parallel_worker_world
        assert isinstance(dataset.batch_size, int)
        self._snapshot = dataset.snapshot
        self._offsets = dataset.sample_offset_per_stream
        self._num_rows = dataset.batch_size
        self._first_row = world.rank * dataset.batch_size
        self._steps = range(
            first_step + world.worker_of_rank, dataset.snapshot.num_steps, world.workers_per_rank
        )
        self._ids_of_step = lru_cache(maxsize=_CACHED_BATCHES)(self._compute)

    def __len__(self) -> int:
        return len(self._steps) * self._num_rows

    def __getitem__(self, index: int) -> int:
        batch, row = divmod(index, self._num_rows)
        return int(self._ids_of_step(self._steps[batch])[row])

    def _compute(self, step: int) -> NDArray[np.int64]:
        source_index, sample_index = self._snapshot.batch(step)
        rows = slice(self._first_row, self._first_row + self._num_rows)
        return self._offsets[source_index[rows]] + sample_index[rows]


class _CountedExit:
    """Counts a thread that dies as one that has exited, so that nobody waits for it."""

    def __init__(self, iterator: _Iterator) -> None:
        self._iterator = iterator

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._iterator.on_exit()
