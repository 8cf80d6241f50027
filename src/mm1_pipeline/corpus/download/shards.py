"""One shard in img2dataset's layout, whole or not there.

00000.tar          `<key>.<suffix>`, `<key>.txt`, `<key>.json` of each image that was kept
00000.parquet      every row of the list, with its status and the reason of a failure
00000_stats.json   counts; written last: its presence means that the shard is finished
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage
from mm1_pipeline.corpus.quarantine import printable

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
_PART = ".part"
_MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A row of a list."""

    url: str | None
    caption: str | None


class ShardWriter:
    """Writes one shard under temporary names and renames it when it is finished.

    Args:
        folder: Of all shards.
        number: Of this one.
        images_per_shard: Gives the digits of the keys.
        identity: What the shard is made of; a later run compares it.
    """

    def __init__(self, folder: Path, number: int, images_per_shard: int, identity: str) -> None:
        self._folder, self._number, self._identity = folder, number, identity
        self._digits = max(4, len(str(images_per_shard - 1)))
        self._rows: list[dict[str, Any]] = []
        self._tar_path = folder / f"{shard_name(number)}.tar{_PART}"
        self._tar = tarfile.open(self._tar_path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, listed: ListedImage, found: FetchedImage | Failed) -> None:
        """Appends the outcome of the next row."""
        key = f"{shard_name(self._number)}{len(self._rows):0{self._digits}d}"
        row: dict[str, Any] = dict.fromkeys(TABLE_SCHEMA.names)
        caption = listed.caption
        row |= {"key": key, "url": listed.url, "caption": caption}
        if isinstance(found, Failed):
            detail = printable(found.detail)[:_MAX_DETAIL]
            row |= {"status": FAILED, "reason": str(found.reason), "error_message": detail}
        else:
            digest = hashlib.sha256(found.data).hexdigest()
            size = {"width": found.width, "height": found.height, "bytes": len(found.data)}
            row |= {"status": SUCCESS, "sha256": digest, **size}
            about = {name: row[name] for name in ("key", "url", "caption", "sha256", *size)}
            self._add_member(f"{key}.{found.suffix}", found.data)
            if caption is not None:
                self._add_member(f"{key}.txt", caption.encode("utf-8"))
            self._add_member(f"{key}.json", json.dumps(about, ensure_ascii=False).encode("utf-8"))
        self._rows.append(row)

    def finish(self) -> dict[str, Any]:
        """Gives the files their names, the statistics last, and returns these."""
        self._tar.close()
        name = shard_name(self._number)
        table = self._folder / f"{name}.parquet{_PART}"
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
        self._tar_path.replace(self._folder / f"{name}.tar")
        table.replace(self._folder / f"{name}.parquet")
        statistics_path = self._folder / f"{name}_stats.json{_PART}"
        statistics_path.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        statistics_path.replace(self._folder / f"{name}_stats.json")
        return statistics

    def abandon(self) -> None:
        """Removes what was written."""
        self._tar.close()
        self._tar_path.unlink(missing_ok=True)

    def _add_member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))


def finished_statistics(folder: Path, number: int, identity: str) -> dict[str, Any] | None:
    """The statistics of a shard that an earlier run finished from the same rows."""
    name = shard_name(number)
    try:
        text = (folder / f"{name}_stats.json").read_text(encoding="utf-8")
        statistics = json.loads(text)
    except (OSError, ValueError):
        return None
    whole = all((folder / f"{name}{suffix}").is_file() for suffix in (".tar", ".parquet"))
    return statistics if whole and statistics.get("identity") == identity else None


def remove_shard(folder: Path, number: int) -> None:
    """Removes a shard that is to be made again: the mark that it is finished first."""
    name = shard_name(number)
    for suffix in ("_stats.json", ".tar", ".parquet"):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def shard_name(number: int) -> str:
    """`00012`: name of a shard's files."""
    return f"{number:05d}"
