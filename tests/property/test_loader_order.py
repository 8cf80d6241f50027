"""What ranks and workers read together is the snapshot, whatever their number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming.base.world import World

from mm1_pipeline.config.training import MixtureConfig, StreamMixture
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.snapshot_dataset import SnapshotDataset, _LazyOrder

MIXTURE = MixtureConfig(
    streams={
        "caption": StreamMixture(share=0.45, sources={"a": 1.0, "b": 2.0}),
        "interleaved": StreamMixture(share=0.45, sources={"c": 1.0}),
        "text": StreamMixture(share=0.1, sources={"d": 1.0}),
    }
)
SIZES = {"a": 7, "b": 31, "c": 100, "d": 3}
OFFSETS = np.array([0, 7, 38, 138])
BATCH_SIZE = 40


def read_in_turn(snapshot: MixtureSnapshot, first_step: int, *worlds: Any) -> list[list[int]]:
    """Batches of one rank, collected from its workers in turn as the DataLoader does."""
    workers = [worker_batches(snapshot, first_step, world) for world in worlds]
    turns = range(snapshot.num_steps - first_step)
    batches = [workers[turn % len(workers)].pop(0) for turn in turns]
    assert not any(workers), "batches that nobody collected"
    return batches


def worker_batches(snapshot: MixtureSnapshot, first_step: int, world: World) -> list[list[int]]:
    rows = snapshot.global_batch_size // world.num_ranks
    dataset = SimpleNamespace(
        snapshot=snapshot,
        sample_offset_per_stream=OFFSETS,
        batch_size=rows,
        _parallel_worker_world=world,
    )
    order = _LazyOrder(cast(SnapshotDataset, dataset), first_step)
    ids = [order[index] for index in range(len(order))]
    return [ids[begin : begin + rows] for begin in range(0, len(ids), rows)]


@given(
    st.sampled_from([(1, 1), (1, 2), (1, 4), (2, 2), (1, 8), (2, 10)]),
    st.integers(1, 5),
    st.integers(1, 12),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_ranks_and_workers_read_the_snapshot_in_order(
    nodes: tuple[int, int], workers_per_rank: int, num_steps: int, data: st.DataObject
) -> None:
    num_nodes, ranks_per_node = nodes
    first_step = data.draw(st.integers(0, num_steps))
    snapshot = MixtureSnapshot(
        MIXTURE, SIZES, num_steps=num_steps, global_batch_size=BATCH_SIZE, seed=3
    )
    num_ranks = num_nodes * ranks_per_node
    by_rank = [
        read_in_turn(
            snapshot,
            first_step,
            *(
                World(num_nodes, ranks_per_node, workers_per_rank, rank * workers_per_rank + w)
                for w in range(workers_per_rank)
            ),
        )
        for rank in range(num_ranks)
    ]
    for number, step in enumerate(range(first_step, num_steps)):
        source_index, sample_index = snapshot.batch(step)
        found = [row for rank in range(num_ranks) for row in by_rank[rank][number]]
        assert found == (OFFSETS[source_index] + sample_index).tolist()
