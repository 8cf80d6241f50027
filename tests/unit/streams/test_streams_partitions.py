"""Partitions cover every record once, cost what they say, and do not depend on files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mm1_pipeline.config.shard import ShardConfig, SubImageConfig
from mm1_pipeline.corpus.records import read_records
from mm1_pipeline.streams.partitions import (
    Partition,
    cut_partitions,
    read_partition,
    record_costs,
    record_files,
    source_costs,
)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_partitions_cover_every_record_once(costs: list[int], limit: int) -> None:
    partitions = cut_partitions("s", np.array(costs, dtype=np.int64), limit)
    assert [p.number for p in partitions] == list(range(len(partitions)))
    rows = [row for p in partitions for row in range(p.first, p.first + p.num_records)]
    assert rows == list(range(len(costs)))
    for number, p in enumerate(partitions):
        assert p.cost == sum(costs[p.first : p.first + p.num_records])
        assert p.cost <= limit or p.num_records == 1
        if number + 1 < len(partitions):
            assert p.cost + costs[p.first + p.num_records] > limit, "it could have been larger"


def test_costs_count_text_and_squares(records_dir: Path, shard_config: ShardConfig) -> None:
    for source in ("pages", "books"):
        expected = [
            1_000
            + 2 * sum(len((s.text or "").encode()) for s in record.segments)
            + 16 * 16 * len(record.images)
            for record in read_records(records_dir, source)
        ]
        assert source_costs(records_dir, source, shard_config).tolist() == expected
    tiled = replace(
        shard_config,
        sub_images=SubImageConfig(grid=2),
        packing=replace(shard_config.packing, max_images=5),
    )
    file = record_files(records_dir, "pairs")[0]
    more = record_costs(file, tiled) - record_costs(file, shard_config)
    assert set(more.tolist()) == {4 * 16 * 16}


@given(st.data())
def test_a_partition_reads_its_rows(records_dir: Path, data: st.DataObject) -> None:
    """150 pairs lie in three files of 50."""
    first = data.draw(st.integers(0, 149))
    number = data.draw(st.integers(0, 150 - first))
    partition = Partition("pairs", 0, first, number, 0)
    found = list(read_partition(records_dir, partition, with_bytes=False))
    assert [record.key for record in found] == [f"pairs-{n}" for n in range(first, first + number)]


def test_without_bytes_the_sizes_are_read(records_dir: Path) -> None:
    partition = Partition("pages", 0, 3, 2, 0)
    light = list(read_partition(records_dir, partition, with_bytes=False))
    whole = list(read_partition(records_dir, partition))
    sizes = [[(i.width, i.height) for i in record.images] for record in whole]
    assert [[(i.width, i.height) for i in record.images] for record in light] == sizes
    assert not any(image.bytes for record in light for image in record.images)
    assert all(image.bytes for record in whole for image in record.images)
