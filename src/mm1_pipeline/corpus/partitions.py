"""Parts of a source that are worked on, and started again, on their own."""

from __future__ import annotations

from mm1_pipeline.config.ingest import SourceConfig
from mm1_pipeline.config.source_formats import ImagePlace
from mm1_pipeline.corpus.files import SourceFiles


def plan_partitions(
    source: SourceConfig, files: SourceFiles, partition_bytes: int
) -> list[tuple[str, ...]]:
    """Parts the files of a source, in their order, without splitting any.

    What a partition holds depends on the files alone, never on the number of workers, so that
    the result does not either. A source of which only the first records are read is one
    partition.

    Args:
        source: parameters of the source; its format says whether its files belong together.
        files: in the order in which they are read.
        partition_bytes: size from which on a partition is closed.

    Returns:
        Names of the files of every partition; at least one partition.
    """
    # Annotations of one folder of images belong together; other files stand alone.
    is_whole = source.format.layout.images == ImagePlace.BESIDE
    if is_whole or source.max_records is not None:
        return [tuple(file.name for file in files)]
    partitions: list[list[str]] = [[]]
    num_bytes = 0
    for file in files:
        if num_bytes >= partition_bytes:
            partitions.append([])
            num_bytes = 0
        partitions[-1].append(file.name)
        num_bytes += file.size
    return [tuple(names) for names in partitions]
