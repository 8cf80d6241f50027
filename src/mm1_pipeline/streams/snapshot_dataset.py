"""Reads the sequences of a mixture snapshot, and keeps the place to resume from.

Sequences are drawn from all over a source, so every shard file is used soon and until the end.
Each is unpacked once a node, into a cache folder, by whichever process needs it first:

    a process needs a sequence  ->  is its file in the cache?  ->  read it
                                    no: lock its name, look again, unpack, check, rename

The kernel drops a lock with its process, so that nobody waits for one that was killed; a file that
cannot be unpacked is an error in every process that needs it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from mm1_pipeline.ground.files import replacing
from mm1_pipeline.streams.mds import ShardFile, read_index
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shard_index import Split, dataset_directory


class SnapshotDataset(Dataset[dict[str, Any]]):
    """All sequences of a training: number `step * batch size + row` is that row of that batch.

    Args:
        shards_dir: The artifact of the stage `shard`.
        snapshot: The order of the training.
        cache_dir: Gets the uncompressed shards. What is in it is not checked again, so it holds
            nothing at first; processes that read at the same time share it.
    """

    def __init__(self, shards_dir: Path, snapshot: MixtureSnapshot, cache_dir: Path) -> None:
        self.snapshot = snapshot
        self.first_step = 0
        """Step to start with; `load_state_dict` moves it."""
        self._snapshot_sha256 = snapshot.describe()["sha256"]
        self._sources = [
            _CachedSource(
                dataset_directory(shards_dir, source, Split.TRAIN),
                dataset_directory(cache_dir, source, Split.TRAIN),
            )
            for source in snapshot.source_names
        ]
        found = tuple(len(source) for source in self._sources)
        assert found == snapshot.num_sequences, (found, snapshot.num_sequences)
        self._latest: tuple[int, tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        return self.snapshot.num_steps * self.snapshot.global_batch_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The packed sequence, with its source and the index of its stream.

        Raises:
            RuntimeError: Its shard cannot be read.
        """
        step, row = divmod(index, self.snapshot.global_batch_size)
        if self._latest is None or self._latest[0] != step:
            self._latest = step, self.snapshot.batch(step)
        source_index, sample_index = self._latest[1]
        source = int(source_index[row])
        try:
            sample = self._sources[source].read(int(sample_index[row]))
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f"A shard could not be read: {error}. Check the disk, then run verify_shards; "
                "the training resumes from its last checkpoint."
            ) from error
        sample["source"] = self.snapshot.source_names[source]
        sample["stream_id"] = int(self.snapshot.stream_of_source[source])
        return sample

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the training is, and in which order of sequences.

        Args:
            num_samples: Sequences that all ranks together have trained on.
            from_beginning: Whether they are counted from the first step, or from `first_step`.
        """
        first = 0 if from_beginning else self.first_step * self.snapshot.global_batch_size
        return {
            "epoch": 0,  # a training is one
            "sample_in_epoch": first + num_samples,
            "snapshot": self._snapshot_sha256,
        }

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Moves the start to where a training stopped.

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
        if rest or obj["epoch"] != 0 or not 0 <= step <= self.snapshot.num_steps:
            raise ValueError(
                f"Found a checkpoint at sample {obj['sample_in_epoch']} of epoch "
                f"{obj['epoch']}, expected a multiple of {self.snapshot.global_batch_size} up "
                f"to {len(self)} in epoch 0: a training is one epoch."
            )
        self.first_step = step


class RankSampler(DistributedSampler):
    """A rank's contiguous rows of every batch that is left.

    Composer takes only samplers of this class where there are several ranks.

    Args:
        dataset: Says where to start, when iterating starts.
        rank: 0 .. num_ranks - 1.
        num_ranks: Processes that share each batch.

    Raises:
        ValueError: The ranks do not divide the batch.
    """

    def __init__(self, dataset: SnapshotDataset, *, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__(dataset, num_replicas=num_ranks, rank=rank, shuffle=False)
        self._snapshot_dataset = dataset
        batch_size = dataset.snapshot.global_batch_size
        if batch_size % num_ranks:
            raise ValueError(
                f"global_batch_size: found {batch_size}, which {num_ranks} ranks do not divide; "
                "use a number of devices that does."
            )
        self.num_rows = batch_size // num_ranks
        """This rank's sequences of a batch."""

    def __iter__(self) -> Iterator[int]:
        """Yields indices of `SnapshotDataset`."""
        dataset = self._snapshot_dataset
        batch_size = dataset.snapshot.global_batch_size
        for step in range(dataset.first_step, dataset.snapshot.num_steps):
            first = step * batch_size + self.rank * self.num_rows
            yield from range(first, first + self.num_rows)

    def __len__(self) -> int:
        """Of the whole training, wherever it starts."""
        return self._snapshot_dataset.snapshot.num_steps * self.num_rows


class _CachedSource:
    """The sequences of one source, by number."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self._shards, self._cache = read_index(directory), cache
        self._ends = np.cumsum([shard.num_samples for shard in self._shards], dtype=np.int64)
        cache.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def read(self, sample: int) -> dict[str, Any]:
        number = int(np.searchsorted(self._ends, sample, side="right"))
        shard = self._shards[number]
        file = self._cache / shard.name
        if not file.exists():
            self._unpack(shard, file)
        try:
            return shard.read_sample(file, sample - int(self._ends[number]) + shard.num_samples)
        except ValueError as error:
            raise ValueError(f"{file} (unpacked from {shard.stored}): {error}") from error

    @staticmethod
    def _unpack(shard: ShardFile, file: Path) -> None:
        with file.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if file.exists():  # another process was first
                return
            with replacing(file) as temporary:
                temporary.write_bytes(shard.unpack())
