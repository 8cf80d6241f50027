"""What was rejected or passed over, and why: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from kedro_rerun.errors import without_secrets

from mm1_pipeline.corpus.columns import to_table
from mm1_pipeline.ground.rejects import Reason, Rejected, printable, storable

QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("key", pa.string()),
        ("unit", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Columns of a quarantine file; `unit` is `record`, or `image` for one dropped from a document."""

_BUFFERED_ROWS = 5_000
_MAX_DETAIL = 500
_MAX_URL = 300


@dataclass
class Tally:
    """Read, kept and rejected units of one source."""

    read: int = 0
    kept: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)

    def check(self, what: str) -> None:
        """Asserts that every unit that was read is accounted for."""
        assert self.kept + self.rejected.total() == self.read, (what, self)

    def keep(self) -> None:
        """Counts a unit that was read and is kept."""
        self.read += 1
        self.kept += 1

    def reject(self, why: Rejected) -> None:
        """Counts a unit that was read and is rejected."""
        self.read += 1
        self.rejected[why.reason] += 1

    def add(self, other: Tally) -> None:
        """Adds the counts of another part."""
        self.read += other.read
        self.kept += other.kept
        self.rejected += other.rejected

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> Tally:
        """Reads what `to_json` wrote."""
        rejected = Counter({Reason(name): count for name, count in counts["rejected"].items()})
        return cls(counts["read"], counts["kept"], rejected)

    def to_json(self) -> dict[str, Any]:
        """The counts with the commonest reason first."""
        ordered = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0].value))
        return {
            "read": self.read,
            "kept": self.kept,
            "rejected": {reason.value: count for reason, count in ordered if count},
        }


class Quarantine:
    """Counts what is rejected from one source and lists it in a Parquet file.

    Args:
        path: the file; its folder is made if missing.
        source: name of the source.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.records = Tally()
        self.images = Tally()
        self._source = source
        self._rows: list[dict[str, str]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(path, QUARANTINE_SCHEMA, compression="zstd")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._flush()
        self._writer.close()

    def reject_record(self, key: str, rejected: Rejected) -> None:
        """Counts and lists a record."""
        self.records.rejected[rejected.reason] += 1
        self._add(key, "record", rejected)

    def reject_image(
        self, key: str, rejected: Rejected, *, listed: bool, count: int = 1, url: str | None = None
    ) -> None:
        """Counts an image, and lists it unless its record is listed for the same reason.

        Args:
            key: of the image's record.
            rejected: why.
            listed: whether the image gets a row of its own.
            count: places of the record that show the image.
            url: of the image, for the row.
        """
        self.images.rejected[rejected.reason] += count
        if listed:
            detail = ": ".join(filter(None, (url and url[:_MAX_URL], rejected.detail)))
            self._add(key, "image", Rejected(rejected.reason, detail))

    def _add(self, key: str, unit: str, rejected: Rejected) -> None:
        self._rows.append(
            {
                "source": self._source,
                "key": storable(key),
                "unit": unit,
                "reason": rejected.reason.value,
                "detail": without_secrets(printable(rejected.detail))[:_MAX_DETAIL],
            }
        )
        if len(self._rows) >= _BUFFERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(to_table(self._rows, QUARANTINE_SCHEMA))
            self._rows = []
