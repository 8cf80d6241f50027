"""What ranks and workers read together is the snapshot, whatever their number."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from mm1_pipeline.config.training import MixtureConfig, StreamMixture
from mm1_pipeline.streams.mixture import MixtureSnapshot
from mm1_pipeline.streams.snapshot_dataset import RankSampler, SnapshotDataset

MIXTURE = MixtureConfig(
    streams={
        "caption": StreamMixture(share=0.45, sources={"a": 1.0, "b": 2.0}),
        "interleaved": StreamMixture(share=0.45, sources={"c": 1.0}),
        "text": StreamMixture(share=0.1, sources={"d": 1.0}),
    }
)
SIZES = {"a": 7, "b": 31, "c": 100, "d": 3}
BATCH_SIZE = 40


class Order(SnapshotDataset):
    """The order alone, without shards."""

    def __init__(self, snapshot: MixtureSnapshot, first_step: int) -> None:
        self.snapshot, self.first_step = snapshot, first_step


@given(st.sampled_from([1, 2, 4, 8, 20]), st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_ranks_read_the_snapshot_in_order(
    num_ranks: int, num_steps: int, data: st.DataObject
) -> None:
    """Workers take whole batches in turn, which is the DataLoader's part."""
    first_step = data.draw(st.integers(0, num_steps))
    snapshot = MixtureSnapshot(
        MIXTURE, SIZES, num_steps=num_steps, global_batch_size=BATCH_SIZE, seed=3
    )
    order = Order(snapshot, first_step)
    samplers = [RankSampler(order, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    rows = BATCH_SIZE // num_ranks
    by_rank = [list(BatchSampler(sampler, rows, drop_last=False)) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [num_steps * rows] * num_ranks
    batches = [[index for part in parts for index in part] for parts in zip(*by_rank, strict=True)]
    steps = range(first_step, num_steps)
    assert batches == [list(range(s * BATCH_SIZE, (s + 1) * BATCH_SIZE)) for s in steps]


def test_a_rank_reads_contiguous_rows() -> None:
    snapshot = MixtureSnapshot(MIXTURE, SIZES, num_steps=3, global_batch_size=BATCH_SIZE, seed=3)
    second = RankSampler(Order(snapshot, 1), rank=1, num_ranks=4)
    assert list(second) == [*range(50, 60), *range(90, 100)]
