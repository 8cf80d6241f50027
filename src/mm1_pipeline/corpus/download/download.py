"""Lists of image addresses to shards: many images at once, each outcome counted.

The rows of the lists, images or whole documents, fill shards in their order. In a shard the images
are fetched at once but written in the order of the rows, so equal answers give equal shards. A
finished shard is kept; a run that was killed makes its open shard again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any

from aiohttp.abc import AbstractResolver
from kedro_rerun.errors import without_secrets

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.corpus.download.documents import DocumentLists
from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage, Fetcher
from mm1_pipeline.corpus.download.lists import Fetch, Found, Lists, Row, Shard
from mm1_pipeline.corpus.download.shards import ImageLists, finished_statistics, remove_shard
from mm1_pipeline.corpus.download.tables import PATTERNS, read_head
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.ground.identity import identity
from mm1_pipeline.ground.progress import Progress

logger = logging.getLogger(__name__)

_LISTED_PROBLEMS = 10
_AHEAD = 8
"""Images that may be fetched, or wait for an earlier one, for each that is fetched at once."""


def download(config: DownloadConfig, *, resolver: AbstractResolver | None = None) -> dict[str, Any]:
    """Fetches every listed image that the rules allow and writes shards that `ingest` reads.

    Source: MM1, Data (captioned images from the web); how they are fetched is our choice.

    Args:
        config: Lists, output, limits.
        resolver: Asks the name service; None takes the system's.

    Returns:
        The report: images read, kept and rejected by reason, shards and bytes; of documents, how
        many got all of their images, some, or none.

    Raises:
        ValueError: No lists are named, or they lack a column.
    """
    if config.lists is None:
        raise ValueError(
            "download.lists: found none, expected a Parquet or TSV file of image addresses and "
            "captions, or a folder of them."
        )
    files = SourceFiles(config.lists, patterns=PATTERNS[config.kind])
    lists = _open_lists(config, files)
    total = _check_lists(config, lists, files)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    made_from = _identity_of(config, files)
    statistics = asyncio.run(_download_all(config, lists, made_from, total, folder, resolver))
    number, shown = len(statistics), without_secrets(str(folder))
    while finished := list(folder.glob(f"{number:05d}*")):  # of an earlier, longer list
        logger.warning("%s: removes shard %05d, which the lists no longer fill.", shown, number)
        remove_shard(folder, number)
        for path in finished:
            path.unlink(missing_ok=True)
        number += 1
    return _report(statistics)


def _open_lists(config: DownloadConfig, files: SourceFiles) -> Lists[Any, Any]:
    if config.kind == "caption":
        return ImageLists(config, files)
    return DocumentLists(config, files)


async def _download_all(
    config: DownloadConfig,
    lists: Lists[Row, Found],
    made_from: str,
    total: int,
    folder: Path,
    resolver: AbstractResolver | None,
) -> list[dict[str, Any]]:
    statistics: list[dict[str, Any]] = []
    with Progress("download", unit=lists.unit, total=total) as progress:
        async with Fetcher(config, resolver) as fetcher:
            for number, rows in enumerate(lists.read(config.max_images)):
                mine = f"{made_from}-{number}-{len(rows)}"
                found = finished_statistics(folder, number, mine, lists.suffixes)
                if found is None:
                    remove_shard(folder, number)
                    shard = lists.open(folder, number, mine)
                    limit = _AHEAD * config.concurrency
                    fetch = _bounded(fetcher, limit)
                    found = await _download_shard(lists, fetch, rows, shard, limit, progress)
                else:
                    progress.skip(len(rows))
                statistics.append(found)
    return statistics


def _bounded(fetcher: Fetcher, concurrency: int) -> Fetch:
    """Fetches so many images at once, and gives a failure as an outcome."""
    slots = asyncio.Semaphore(concurrency)

    async def fetch(url: str | None) -> FetchedImage | Failed:
        async with slots:
            try:
                return await fetcher.fetch(url)
            except Failed as error:
                return error

    return fetch


async def _download_shard(
    lists: Lists[Row, Found],
    fetch: Fetch,
    rows: list[Row],
    shard: Shard[Row, Found],
    limit: int,
    progress: Progress,
) -> dict[str, Any]:
    """Fetches the images of a shard's rows, many rows at once, and writes them in their order."""
    waiting: deque[tuple[Row, asyncio.Task[Found]]] = deque()
    num_waiting = 0

    async def write_first() -> None:
        nonlocal num_waiting
        # The row stays in the queue until it is done, so that an error cancels it.
        row, task = waiting[0]
        shard.add(row, await task)
        waiting.popleft()
        num_waiting -= lists.num_images(row)
        progress.advance(1, note=f"({shard.num_kept:,} images kept in this shard)")

    try:
        for row in rows:
            waiting.append((row, asyncio.create_task(lists.fetch(row, fetch))))
            num_waiting += lists.num_images(row)
            while num_waiting >= limit:
                await write_first()
        while waiting:
            await write_first()
        return shard.finish()
    except BaseException:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
        shard.abandon()
        raise


def _check_lists(config: DownloadConfig, lists: Lists[Any, Any], files: SourceFiles) -> int:
    """Number of rows that will be taken, about; every list has the columns that are needed."""
    total = 0
    problems: list[str] = []
    for file in files:
        try:
            schema, num_rows = read_head(config, files, file)
            lists.check(file.name, schema)
            total += num_rows
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - _LISTED_PROBLEMS
        rest = [f"download.lists: found {more} more files with problems."] if more > 0 else []
        raise ValueError("\n".join([*problems[:_LISTED_PROBLEMS], *rest]))
    if not total:
        expected = " or ".join(PATTERNS[config.kind])
        found = without_secrets(config.lists or "")
        raise ValueError(f"download.lists: found no rows in {found}, expected {expected}.")
    return total if config.max_images is None else min(total, config.max_images)


def _identity_of(config: DownloadConfig, files: SourceFiles) -> str:
    """What the outcome depends on, as far as it is known without asking servers."""
    return identity(config=config, lists=files.listing())[:16]


def _report(statistics: list[dict[str, Any]]) -> dict[str, Any]:
    rejected: Counter[str] = Counter()
    for shard in statistics:
        rejected.update(shard["status_dict"])
    read = sum(shard["count"] for shard in statistics)
    kept = sum(shard["successes"] for shard in statistics)
    assert kept + rejected.total() == read, (kept, rejected, read)
    documents = Counter[str]()
    for shard in statistics:
        documents.update(shard.get("documents", {}))
    return {
        **({"documents": dict(documents)} if documents else {}),
        "read": read,
        "kept": kept,
        "rejected": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        "shards": len(statistics),
        "bytes": sum(shard["bytes"] for shard in statistics),
    }
