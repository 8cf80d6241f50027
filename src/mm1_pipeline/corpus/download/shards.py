"""Lists of captioned images, to shards in img2dataset's layout; a shard is whole or not there.

00000.tar          `<key>.<suffix>`, `<key>.txt`, `<key>.json` of each image that was kept
00000.parquet      every row of the list, with its status and the reason of a failure
00000_stats.json   counts; written last: its presence means that the shard is finished
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage
from mm1_pipeline.corpus.download.lists import Fetch, Outcome, texts
from mm1_pipeline.corpus.download.tables import read_batches
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.ground.files import hash_file, read_sealed, seal
from mm1_pipeline.ground.rejects import printable

logger = logging.getLogger(__name__)

TABLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("error_message", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
SUCCESS, FAILED = "success", "failed_to_download"
STATISTICS, ARCHIVE, TABLE = "_stats.json", ".tar", ".parquet"
DOCUMENTS, IMAGES_TABLE = ".parquet", "_images.jsonl"
"""Suffixes of a shard's files, in the two layouts."""
PART = ".part"
_HASHES = "xxh3_128"
_ABOUT = ("key", "url", "caption", "sha256", "width", "height", "bytes")
_MAX_DETAIL = 300
_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A row of a list."""

    url: str | None
    caption: str | None


@dataclass(frozen=True)
class ImageLists:
    """Lists with a row an image.

    Args:
        config: What is read.
        files: Lists of URLs and captions, in the order of their rows.
    """

    config: DownloadConfig
    files: SourceFiles
    unit: str = "images"
    suffixes: tuple[str, ...] = (ARCHIVE, TABLE)

    def check(self, name: str, schema: pa.Schema) -> None:
        """Refuses a list that lacks a column.

        Raises:
            ValueError: With the columns that it has.
        """
        for parameter in ("url_column", "caption_column"):
            if (column := getattr(self.config, parameter)) not in schema.names:
                raise ValueError(
                    f"download.{parameter}: found {column!r}, but {name} has the columns "
                    f"{', '.join(schema.names)}."
                )

    def read(self, limit: int | None) -> Iterator[list[ListedImage]]:
        """The rows of each shard."""
        rows = itertools.islice(self._read_rows(), limit)
        while shard := list(itertools.islice(rows, self.config.images_per_shard)):
            yield shard

    def _read_rows(self) -> Iterator[ListedImage]:
        columns = [self.config.url_column, self.config.caption_column]
        for file in self.files:
            for batch in read_batches(self.config, self.files, file, _ROWS_AT_ONCE, columns):
                urls, captions = (texts(batch.column(name)) for name in columns)
                yield from map(ListedImage, urls, captions)

    def num_images(self, row: ListedImage) -> int:
        """One."""
        return 1

    async def fetch(self, row: ListedImage, fetch: Fetch) -> Outcome:
        """Fetches the image."""
        return await fetch(row.url)

    def open(self, folder: Path, number: int, identity: str) -> ShardWriter:
        """Writes one shard."""
        return ShardWriter(folder, number, self.config.images_per_shard, identity)


class ShardWriter:
    """Writes one shard under temporary names and renames it when it is finished.

    Args:
        folder: Where all shards lie; this one adds its own files.
        number: From 0; the beginning of its files' names and its images' keys.
        images_per_shard: Gives the digits of the keys.
        identity: What the shard is made of; a later run compares it.
    """

    def __init__(self, folder: Path, number: int, images_per_shard: int, identity: str) -> None:
        self._folder, self._number, self._identity = folder, number, identity
        self._digits = max(4, len(str(images_per_shard - 1)))
        self._rows: list[dict[str, Any]] = []
        self.num_kept = 0
        self._tar_path = folder / f"{shard_name(number)}{ARCHIVE}{PART}"
        self._tar = tarfile.open(self._tar_path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, listed: ListedImage, found: Outcome) -> None:
        """Appends the outcome of the next row."""
        key = f"{shard_name(self._number)}{len(self._rows):0{self._digits}d}"
        row: dict[str, Any] = dict.fromkeys(TABLE_SCHEMA.names)
        caption = listed.caption
        row |= {"key": key, "url": listed.url, "caption": caption}
        row |= describe(found)
        if isinstance(found, FetchedImage):
            self.num_kept += 1
            about = {name: row[name] for name in _ABOUT}
            self._add_member(f"{key}.{found.suffix}", found.data)
            if caption is not None:
                self._add_member(f"{key}.txt", caption.encode("utf-8"))
            self._add_member(f"{key}.json", json.dumps(about, ensure_ascii=False).encode("utf-8"))
        self._rows.append(row)

    def finish(self) -> dict[str, Any]:
        """Gives the files their names, the statistics last, and returns these."""
        self._tar.close()
        table = self._folder / f"{shard_name(self._number)}{TABLE}{PART}"
        pq.write_table(pa.Table.from_pylist(self._rows, schema=TABLE_SCHEMA), table)
        failures = Counter(row["reason"] for row in self._rows if row["status"] == FAILED)
        statistics = {
            "count": len(self._rows),
            "successes": len(self._rows) - failures.total(),
            "failed_to_download": failures.total(),
            "status_dict": dict(sorted(failures.items())),
            "bytes": sum(row["bytes"] or 0 for row in self._rows),
            "identity": self._identity,
        }
        publish_shard(self._folder, self._number, (ARCHIVE, TABLE), statistics)
        return statistics

    def abandon(self) -> None:
        """Removes what was written."""
        self._tar.close()
        self._tar_path.unlink(missing_ok=True)

    def _add_member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))


def describe(found: Outcome) -> dict[str, Any]:
    """Status of an image, the reason of a failure, and size and hash of what was fetched."""
    if isinstance(found, Failed):
        detail = printable(found.detail)[:_MAX_DETAIL]
        return {"status": FAILED, "reason": str(found.reason), "error_message": detail}
    digest = hashlib.sha256(found.data).hexdigest()
    size = {"width": found.width, "height": found.height, "bytes": len(found.data)}
    return {"status": SUCCESS, "sha256": digest, **size}


def publish_shard(
    folder: Path, number: int, suffixes: Sequence[str], statistics: dict[str, Any]
) -> None:
    """Gives the files of a shard their names, and writes its statistics last, with their hashes."""
    hashes = {}
    for suffix in suffixes:
        path = folder / f"{shard_name(number)}{suffix}"
        path.with_name(f"{path.name}{PART}").replace(path)
        hashes[suffix] = hash_file(path)
    statistics = seal({**statistics, _HASHES: hashes})
    path = folder / f"{shard_name(number)}{STATISTICS}"
    unfinished = path.with_name(f"{path.name}{PART}")
    unfinished.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def finished_statistics(
    folder: Path, number: int, identity: str, suffixes: Sequence[str]
) -> dict[str, Any] | None:
    """The statistics of a shard that an earlier run finished from the same rows.

    None where there is none, or it is not as that run left it.
    """
    name = shard_name(number)
    statistics = read_sealed(folder / f"{name}{STATISTICS}")
    if statistics is None or statistics["identity"] != identity:
        return None
    files = {suffix: folder / f"{name}{suffix}" for suffix in suffixes}
    for suffix, path in files.items():
        if not path.is_file() or hash_file(path) != statistics[_HASHES].get(suffix):
            logger.warning("%s: missing or damaged since it was fetched; fetched again.", path)
            return None
    return statistics


def remove_shard(folder: Path, number: int) -> None:
    """Removes a shard that is to be made again: the mark that it is finished first."""
    name = shard_name(number)
    for suffix in dict.fromkeys((STATISTICS, ARCHIVE, TABLE, DOCUMENTS, IMAGES_TABLE)):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def shard_name(number: int) -> str:
    """`00012`: name of a shard's files."""
    return f"{number:05d}"
