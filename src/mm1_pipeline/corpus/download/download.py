"""Lists of image addresses to shards: many images at once, each outcome counted.

The rows of the lists, in order, fill shards of equal length. In a shard the images are fetched
at once but written in the order of the rows, so equal answers give equal shards. A finished
shard is kept; a run that was killed makes its open shard again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp.abc import AbstractResolver

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage, Fetcher
from mm1_pipeline.corpus.download.shards import (
    ListedImage,
    ShardWriter,
    finished_statistics,
    remove_shard,
)
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.corpus.work_progress import WorkProgress

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1_000
_AHEAD = 2
"""Images that may be fetched, or wait for an earlier one, for each that is fetched at once."""


def download(config: DownloadConfig, *, resolver: AbstractResolver | None = None) -> dict[str, Any]:
    """Fetches every listed image that the rules allow and writes shards that `ingest` reads.

    Source: MM1, Data (captioned images from the web); how they are fetched is our choice.

    Args:
        config: Lists, output, limits.
        resolver: Asks the name service; None takes the system's.

    Returns:
        The report: rows read, kept and rejected by reason, shards and bytes.

    Raises:
        ValueError: No lists are named, or they lack a column.
    """
    if config.lists is None:
        raise ValueError(
            "download.lists: found none, expected a Parquet file of image addresses and captions, "
            "or a folder of them."
        )
    files = SourceFiles(config.lists, patterns=("*.parquet",))
    total = _check_lists(config, files)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    statistics = asyncio.run(_download_all(config, files, total, folder, resolver))
    number = len(statistics)
    while finished := list(folder.glob(f"{number:05d}*")):  # of an earlier, longer list
        logger.warning("%s: removes shard %05d, which the lists no longer fill.", folder, number)
        remove_shard(folder, number)
        for path in finished:
            path.unlink(missing_ok=True)
        number += 1
    return _report(statistics)


async def _download_all(
    config: DownloadConfig,
    files: SourceFiles,
    total: int,
    folder: Path,
    resolver: AbstractResolver | None,
) -> list[dict[str, Any]]:
    statistics: list[dict[str, Any]] = []
    rows = itertools.islice(_read_lists(config, files), config.max_images)
    identity = _identity(config, files)
    with WorkProgress("download", total, "images") as progress:
        async with Fetcher(config, resolver) as fetcher:
            for number in itertools.count():
                shard_rows = list(itertools.islice(rows, config.images_per_shard))
                if not shard_rows:
                    return statistics
                mine = f"{identity}-{number}-{len(shard_rows)}"
                found = finished_statistics(folder, number, mine)
                if found is None:
                    remove_shard(folder, number)
                    writer = ShardWriter(folder, number, config.images_per_shard, mine)
                    found = await _download_shard(config, fetcher, shard_rows, writer, progress)
                else:
                    progress.skip(len(shard_rows))
                statistics.append(found)
    raise AssertionError("the loop returns")


async def _download_shard(
    config: DownloadConfig,
    fetcher: Fetcher,
    rows: list[ListedImage],
    writer: ShardWriter,
    progress: WorkProgress,
) -> dict[str, Any]:
    """Fetches a shard's images, so many at once, and writes them in their order."""
    waiting: deque[tuple[ListedImage, asyncio.Task[FetchedImage | Failed]]] = deque()
    slots = asyncio.Semaphore(config.concurrency)
    kept = 0

    async def fetch(row: ListedImage) -> FetchedImage | Failed:
        async with slots:
            try:
                return await fetcher.fetch(row.url)
            except Failed as error:
                return error

    async def write_first() -> None:
        nonlocal kept
        row, task = waiting.popleft()
        found = await task
        writer.add(row, found)
        kept += isinstance(found, FetchedImage)
        progress.advance(1, f"({kept:,} kept in this shard)")

    try:
        for row in rows:
            waiting.append((row, asyncio.create_task(fetch(row))))
            if len(waiting) >= _AHEAD * config.concurrency:
                await write_first()
        while waiting:
            await write_first()
        return writer.finish()
    except BaseException:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
        writer.abandon()
        raise


def _check_lists(config: DownloadConfig, files: SourceFiles) -> int:
    """Number of rows that will be taken; every list has both columns."""
    total = 0
    for file in files:
        with files.open_aside(file) as stream, pq.ParquetFile(stream) as parquet:
            names = parquet.schema_arrow.names
            total += parquet.metadata.num_rows
        for parameter in ("url_column", "caption_column"):
            if (column := getattr(config, parameter)) not in names:
                raise ValueError(
                    f"download.{parameter}: found {column!r}, but {file.name} has the columns "
                    f"{', '.join(names)}."
                )
    if not total:
        raise ValueError(f"download.lists: found no rows in {config.lists}.")
    return total if config.max_images is None else min(total, config.max_images)


def _read_lists(config: DownloadConfig, files: SourceFiles) -> Iterator[ListedImage]:
    columns = [config.url_column, config.caption_column]
    for file in files:
        with files.open(file) as stream, pq.ParquetFile(stream) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                urls, captions = (_texts(batch.column(name)) for name in columns)
                yield from map(ListedImage, urls, captions)


def _texts(column: pa.Array) -> list[str | None]:
    return [value if isinstance(value, str) else None for value in column.to_pylist()]


def _identity(config: DownloadConfig, files: SourceFiles) -> str:
    """What the outcome depends on, as far as it is known without asking servers."""
    ignored = {"output": None, "lists": None, "concurrency": None, "max_images": None}
    content = [{**asdict(config), **ignored}, files.listing()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _report(statistics: list[dict[str, Any]]) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for shard in statistics:
        rejected.update(shard["status_dict"])
    read = sum(shard["count"] for shard in statistics)
    kept = sum(shard["successes"] for shard in statistics)
    assert kept + rejected.total() == read, (kept, rejected, read)
    return {
        "read": read,
        "kept": kept,
        "rejected": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        "shards": len(statistics),
        "bytes": sum(shard["bytes"] for shard in statistics),
    }
