"""What a finished source leaves for those after it, which must not repeat it.

keys/<partition>/*.parquet    its tables of keys, as the steps wrote them
keys/dropped.parquet          what near-duplicates and pictures are not compared with
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mm1_pipeline.config.corpus_rules import DeduplicationConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.deduplication import DROPPED, PARTITION_STRIDE, EarlierSource
from mm1_pipeline.corpus.steps import PartitionTask
from mm1_pipeline.ground.files import link_or_copy

_KEYS = "keys"
_JUDGED = ("names", "exact", "near", "pictures")
_METHODS: dict[str, Callable[[DeduplicationConfig], object]] = {
    "exact": lambda methods: methods.exact or None,
    "near": lambda methods: methods.near,
    "pictures": lambda methods: methods.perceptual or None,
    "perceptual_hashes": lambda methods: methods.perceptual or None,
}
"""What a table was made with; None if it was not made."""


def is_wanted_later(name: str, config: IngestConfig) -> bool:
    """Whether a source after this one must not repeat it."""
    return any(name in config.earlier_sources(other) for other in config.sources)


def keep_keys(folder: Path, tasks: Sequence[PartitionTask]) -> None:
    """Keeps the tables of keys of a source that is finished; costs no copy.

    Args:
        folder: Of the source's work; its steps are still there.
        tasks: The source's partitions, whose tables of keys are linked.
    """
    keys = folder / _KEYS
    for task in tasks:
        part = keys / f"{task.number:05d}"
        part.mkdir(parents=True, exist_ok=True)
        files = [task.step("judge") / f"{name}.parquet" for name in _JUDGED]
        for file in (*files, task.step("read") / "perceptual_hashes.parquet"):
            link_or_copy(file, part / file.name)
    link_or_copy(folder / "repeats" / "found" / DROPPED, keys / DROPPED)


def open_earlier(
    name: str, config: IngestConfig, finished: Mapping[str, Path]
) -> list[EarlierSource]:
    """What a source is compared with, its sources in their order.

    Args:
        name: Of the source that is searched.
        config: The sources.
        finished: Folders of the sources before it, by name.
    """
    ours = config.deduplication_of(config.sources[name])
    opened: list[EarlierSource] = []
    num_partitions = 0
    for other in reversed(config.earlier_sources(name)):
        theirs = config.deduplication_of(config.sources[other])
        keys = finished[other] / _KEYS
        partitions = sorted(path for path in keys.iterdir() if path.is_dir())
        num_partitions += len(partitions)
        same = [
            table
            for table, made_with in _METHODS.items()
            if made_with(ours) is not None and made_with(ours) == made_with(theirs)
        ]
        tables = {
            table: [part / f"{table}.parquet" for part in partitions] for table in ("names", *same)
        }
        shift = -num_partitions * PARTITION_STRIDE
        opened.append(EarlierSource(other, tables, [keys / DROPPED], shift))
    return opened[::-1]
