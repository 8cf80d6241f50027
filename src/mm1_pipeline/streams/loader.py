"""Data loaders of a training and of its held-out sequences."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mm1_pipeline.config.training import MixtureConfig
from mm1_pipeline.streams.collation import collate
from mm1_pipeline.streams.leftovers import TemporaryFolder
from mm1_pipeline.streams.mds import read_sequences
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.shard_index import ShardIndex, Split, dataset_directory, verify_shards
from mm1_pipeline.streams.snapshot_dataset import RankSampler, SnapshotDataset

__all__ = ["MixtureLoader", "build_loader", "build_validation_loader", "verify_shards"]


class MixtureLoader(DataLoader):
    """Delivers each batch of a training once, and notices when one is missing.

    `dataset` keeps the place: `loader.dataset.state_dict(num_samples, from_beginning=True)`
    and `load_state_dict` are what a checkpoint saves and restores.
    """

    dataset: SnapshotDataset  # pyright: ignore[reportIncompatibleVariableOverride]
    delivered_steps: int = 0
    """Batches that were delivered."""
    _is_used: bool = False

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yields this rank's part of each batch that is left.

        Raises:
            RuntimeError: The data ended before the training, a shard cannot be read, or this is
                a second pass.
        """
        if self._is_used:
            raise RuntimeError(
                "Found a second pass over the data: a training is one epoch of "
                f"{self.dataset.snapshot.num_steps} steps. Build a new loader to start again."
            )
        self._is_used = True
        batches = super().__iter__()
        try:
            for batch in batches:
                self.delivered_steps += 1
                yield batch
            self.assert_complete()
        finally:
            # Left to the garbage collector, workers may miss the word to stop and cost 5 s each.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()

    @property
    def expected_steps(self) -> int:
        """Batches that are left: all, or those after the place that was resumed from."""
        return self.dataset.snapshot.num_steps - self.dataset.first_step

    def assert_complete(self) -> None:
        """Checks that every batch that was left has been delivered.

        Raises:
            RuntimeError: Fewer were.
        """
        if self.delivered_steps != self.expected_steps:
            raise RuntimeError(
                f"Found {self.delivered_steps} batches, expected {self.expected_steps}: the data "
                "ended before the training. Check the shards with verify_shards."
            )


def build_loader(
    shards_dir: Path,
    mixture: MixtureConfig,
    *,
    num_steps: int,
    global_batch_size: int,
    seed: int,
    rank: int = 0,
    num_ranks: int = 1,
    num_workers: int = 0,
    cache_dir: Path | None = None,
    timeout_seconds: float = 1_800,
    start_worker: Callable[[int], None] | None = None,
) -> MixtureLoader:
    """Builds the loader of a training: one epoch of `num_steps` batches.

    On each rank, batch s holds the rank's contiguous rows of `snapshot.batch(s)`, for any
    number of ranks and workers, resumed or not. Call `verify_shards` before.

    Args:
        shards_dir: The artifact of the stage `shard`.
        mixture: Streams, shares, sources.
        num_steps: Batches of the training.
        global_batch_size: Sequences in a batch, over all ranks.
        seed: Chooses the order of each source.
        rank: Of this process, 0 .. num_ranks - 1.
        num_ranks: Processes that share each batch.
        num_workers: Processes that read and decode, on each rank. With 0, unpacking a shard and
            decoding images wait for each other and for the training.
        cache_dir: Gets all uncompressed shards; a `TemporaryFolder` of one run and one node,
            whose ranks all name the same. None makes one among the temporary files.
        timeout_seconds: Silence of a reading process after which iterating raises.
        start_worker: Called first in each reading process.

    Returns:
        The loader of `collate`d batches.

    Raises:
        ValueError: The mixture cannot be drawn from these shards, or the ranks do not divide
            the batch.
    """
    snapshot = MixtureSnapshot.of_shards(
        mixture,
        shards_dir,
        num_steps=num_steps,
        global_batch_size=global_batch_size,
        seed=seed,
    )
    temporary = None
    if cache_dir is None:
        if num_ranks > 1:
            raise ValueError(
                "cache_dir: found None with more than one rank; name a folder that all ranks of a "
                "node share."
            )
        temporary = TemporaryFolder("cache")
        cache_dir = temporary.path
    elif num_ranks == 1 and any(Path(cache_dir).rglob("*.mds")):
        raise ValueError(
            f"cache_dir: found shards in {cache_dir}, expected an empty folder: nothing says that "
            "they are whole, and of this training."
        )
    dataset = SnapshotDataset(Path(shards_dir).absolute(), snapshot, Path(cache_dir).absolute())
    sampler = RankSampler(dataset, rank=rank, num_ranks=num_ranks)
    loader = MixtureLoader(
        dataset,
        batch_size=sampler.num_rows,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(collate, transform=ShardIndex.read(shards_dir).image),
        pin_memory=torch.cuda.is_available(),
        timeout=timeout_seconds if num_workers else 0,
        worker_init_fn=start_worker,
    )
    if temporary is not None:
        weakref.finalize(loader, temporary.close)
    return loader


def build_validation_loader(
    shards_dir: Path, source: str, batch_size: int, *, stream_id: int = 0
) -> DataLoader:
    """Builds the loader of a source's held-out sequences, in the order they were written.

    It reads in this process and needs no cache.

    Args:
        shards_dir: The artifact of the stage `shard`.
        source: Name of the source.
        batch_size: Sequences in a batch; the last may have fewer.
        stream_id: What `stream_ids` says of every sequence.

    Returns:
        The loader of `collate`d batches; empty if nothing was held out.

    Raises:
        ValueError: The shards have no such source.
    """
    return DataLoader(
        ValidationSequences(shards_dir, source, stream_id),
        batch_size=batch_size,
        collate_fn=partial(collate, transform=ShardIndex.read(shards_dir).image),
    )


class ValidationSequences(IterableDataset):
    """The held-out sequences of a source, one shard in memory at a time."""

    def __init__(self, shards_dir: Path, source: str, stream_id: int = 0) -> None:
        sources = ShardIndex.read(shards_dir).sources
        if source not in sources:
            raise ValueError(
                f"Found no source {source!r} in the shards, which hold "
                f"{', '.join(sorted(sources))}."
            )
        self._directory = dataset_directory(shards_dir, source, Split.VALIDATION)
        self._identity = {"source": source, "stream_id": stream_id}
        self._length = sources[source].validation.sequences

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the sequences with their source and stream."""
        for sample in read_sequences(self._directory):
            yield {**sample, **self._identity}
