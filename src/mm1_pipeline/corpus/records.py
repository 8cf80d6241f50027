"""Records: what `ingest` makes of every raw format, and how they lie on disk.

An artifact of records holds

    sources.json                              kind and split of every source
    records/<source>/part-00000.parquet ...   kept records, in the order they were read
    quarantine/<source>.parquet               what was rejected, and why
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.config.ingest import RecordKind, SourceConfig, SourceSplit
from mm1_pipeline.corpus.columns import to_table
from mm1_pipeline.ground.rejects import Reason, Rejected, storable

RECORD_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("key", pa.string()),
        ("kind", pa.string()),
        (
            "segments",
            pa.list_(
                pa.struct(
                    [
                        ("role", pa.string()),
                        ("type", pa.string()),
                        ("text", pa.string()),
                        ("image", pa.int32()),
                    ]
                )
            ),
        ),
        (
            "images",
            pa.list_(
                pa.struct(
                    [
                        ("bytes", pa.binary()),
                        ("url", pa.string()),
                        ("sha256", pa.string()),
                        ("width", pa.int32()),
                        ("height", pa.int32()),
                    ]
                )
            ),
        ),
        ("references", pa.list_(pa.string())),
        ("metadata", pa.string()),
    ]
)
"""Columns of a records file; `metadata` is a JSON object."""

RECORDS = "records"
SOURCES = "sources.json"

SYNTHETIC_OF = "synthetic_of"
"""Metadata field of a synthetic caption: source and key of the record whose image it shows."""

_BUFFERED_BYTES = 32_000_000
_BUFFERED_BYTES_TEMPORARY = 4_000_000
"""Fits into the caches of a processor, and nobody cares how such files are parted."""
_BUFFERED_RECORDS = 1_000
_TEMPORARY_COMPRESSION = {"segments.list.element.text": "zstd", "metadata": "zstd"}
_READ_RECORDS = 64
_MAX_DEPTH = 64
"""How deep metadata may be nested: as deep as nobody writes it, and readers of JSON can go."""
_IMAGE_COLUMNS = tuple(
    f"images.list.element.{name}" for name in ("url", "sha256", "width", "height")
)


class SegmentType(StrEnum):
    """What one segment of a record is."""

    TEXT = "text"
    IMAGE = "image"


class Role(StrEnum):
    """Who speaks in a conversation."""

    SYSTEM = "system"
    """Instructions before the first turn."""
    HUMAN = "human"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, or the place of an image."""

    type: SegmentType
    text: str | None = None
    image: int | None = None
    """Index into the record's images."""
    role: Role | None = None
    """Set in conversations only."""

    @classmethod
    def of_text(cls, text: str, role: Role | None = None) -> Segment:
        """A segment of text."""
        return cls(SegmentType.TEXT, text=text, role=role)

    @classmethod
    def of_image(cls, index: int, role: Role | None = None) -> Segment:
        """The place of the image with this index."""
        return cls(SegmentType.IMAGE, image=index, role=role)


@dataclass(frozen=True, slots=True)
class RecordImage:
    """An encoded image that has been decoded once, so it is known to be whole."""

    bytes: bytes
    url: str | None
    sha256: str
    """Of the encoded bytes, in hexadecimal digits."""
    width: int
    """In pixels, after the orientation that the file asks for."""
    height: int


@dataclass(frozen=True, slots=True)
class Record:
    """One caption pair, interleaved document, text or conversation."""

    source: str
    key: str
    """Unique within the source."""
    kind: RecordKind
    segments: tuple[Segment, ...]
    images: tuple[RecordImage, ...] = ()
    references: tuple[str, ...] = ()
    """What an answer is scored against; empty outside of evaluation sources."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {s.image for s in self.segments if s.type == SegmentType.IMAGE}
        assert used == set(range(len(self.images))), (self.key, used, len(self.images))

    @property
    def num_characters(self) -> int:
        """Characters of all text segments."""
        return sum(len(segment.text or "") for segment in self.segments)

    def content_hash(self) -> bytes:
        """Hash of the texts, image contents and roles in their order: what a duplicate repeats."""
        digest = hashlib.blake2b(digest_size=16)
        for segment in self.segments:
            content = segment.text if segment.image is None else self.images[segment.image].sha256
            fields = (segment.role, segment.type, content)
            digest.update(json.dumps(fields).encode())
        return digest.digest()

    def to_row(self) -> dict[str, Any]:
        """The record as a row of RECORD_SCHEMA."""
        return {
            "source": self.source,
            "key": self.key,
            "kind": self.kind.value,
            "segments": [
                {"role": s.role, "type": s.type.value, "text": s.text, "image": s.image}
                for s in self.segments
            ],
            "images": [
                {
                    "bytes": image.bytes,
                    "url": image.url,
                    "sha256": image.sha256,
                    "width": image.width,
                    "height": image.height,
                }
                for image in self.images
            ],
            "references": list(self.references),
            "metadata": dump_metadata(self.metadata),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """The record behind a row of RECORD_SCHEMA; image bytes may be left out."""
        return cls(
            source=row["source"],
            key=row["key"],
            kind=RecordKind(row["kind"]),
            segments=tuple(
                Segment(
                    type=SegmentType(s["type"]),
                    text=s["text"],
                    image=s["image"],
                    role=None if s["role"] is None else Role(s["role"]),
                )
                for s in row["segments"]
            ),
            images=tuple(RecordImage(**{"bytes": b"", **image}) for image in row["images"]),
            references=tuple(row["references"]),
            metadata=json.loads(row["metadata"]),
        )


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON that any reader accepts: no NaN, no half of a surrogate pair.

    Raises:
        Rejected: it is nested deeper than any reader need follow.
    """
    return json.dumps(plain_metadata(metadata), ensure_ascii=False, allow_nan=False)


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as what JSON and every file can hold; for errors, see `dump_metadata`."""
    return {storable(str(key)): _jsonable(item, 1) for key, item in metadata.items()}


def _jsonable(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        found = f"found metadata nested over {_MAX_DEPTH} deep"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    match value:
        case None | bool() | int():
            return value
        case str():
            return storable(value)
        case float():
            return value if value - value == 0 else None
        case Mapping():
            return {storable(str(key)): _jsonable(item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item, depth + 1) for item in value]
        case bytes():
            return None
        case _:
            return storable(str(value))


class RecordWriter:
    """Writes records to numbered Parquet files, holding few of them in memory.

    A source without records still gets one empty file, so that reading it works.

    Args:
        directory: folder of the files; made if missing.
        records_per_file: rows of a file.
        temporary: whether the files are read once and removed; images are not compressed then,
            which takes longer than to write and read what it saves.
    """

    def __init__(self, directory: Path, records_per_file: int, *, temporary: bool = False) -> None:
        self._directory = directory
        self._records_per_file = records_per_file
        self._temporary = temporary
        self._max_bytes = _BUFFERED_BYTES_TEMPORARY if temporary else _BUFFERED_BYTES
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._rows_in_file = 0
        self._num_files = 0
        self._writer: pq.ParquetWriter | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._flush()
            if not self._num_files:
                self._open_file()
        self._close_file()

    def write(self, record: Record) -> None:
        """Appends one record."""
        row = record.to_row()
        self._rows.append(row)
        self._bytes += sum(len(image.bytes) for image in record.images) + record.num_characters
        self._bytes += len(row["metadata"])
        full = self._rows_in_file + len(self._rows) >= self._records_per_file
        if full or self._bytes >= self._max_bytes or len(self._rows) >= _BUFFERED_RECORDS:
            self._flush()
        if full:
            self._close_file()

    def _flush(self) -> None:
        if not self._rows:
            return
        writer = self._writer or self._open_file()
        writer.write_table(to_table(self._rows, RECORD_SCHEMA))
        self._rows_in_file += len(self._rows)
        self._rows, self._bytes = [], 0

    def _open_file(self) -> pq.ParquetWriter:
        path = self._directory / f"part-{self._num_files:05d}.parquet"
        compression = _TEMPORARY_COMPRESSION if self._temporary else "zstd"
        self._writer = pq.ParquetWriter(
            path,
            RECORD_SCHEMA,
            compression=compression,  # pyright: ignore[reportArgumentType]
            use_dictionary=["source", "kind"],  # pyright: ignore[reportArgumentType]
            write_statistics=["key"],  # pyright: ignore[reportArgumentType]
        )
        self._num_files += 1
        return self._writer

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows_in_file = None, 0


def read_records(records_dir: Path, source: str) -> Iterator[Record]:
    """Reads the kept records of one source in their order, few at a time.

    Args:
        records_dir: the artifact of `ingest`, the folder that contains `records/`.
        source: name of the source.

    Raises:
        ValueError: the artifact has no such source.
    """
    directory = Path(records_dir) / RECORDS / source
    if not directory.is_dir():
        known = sorted(path.name for path in directory.parent.glob("*"))
        raise ValueError(
            f"{directory.parent}: found no records of the source {source!r}, only of "
            f"{', '.join(known) or 'none'}. Name the source in ingest.sources and run ingest."
        )
    return read_parts(directory)


def read_parts(directory: Path, *, with_bytes: bool = True) -> Iterator[Record]:
    """Reads the records of one folder of Parquet files in their order.

    Args:
        directory: a folder that RecordWriter wrote.
        with_bytes: False leaves the encoded images on disk; everything else is read.
    """
    columns = None
    if not with_bytes:
        columns = [name for name in RECORD_SCHEMA.names if name != "images"]
        columns += _IMAGE_COLUMNS
    for path in sorted(directory.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                # RecordWriter bounds a row group by its bytes, so this bounds the memory.
                table = file.read_row_group(group, columns=columns)
                for batch in table.to_batches(max_chunksize=_READ_RECORDS):
                    yield from map(Record.from_row, batch.to_pylist())


def write_sources(records_dir: Path, sources: Mapping[str, SourceConfig]) -> None:
    """States kind and split of every source, for the stages that read the records."""
    content = {
        name: {"kind": source.kind.value, "split": source.split.value}
        for name, source in sources.items()
    }
    records_dir.mkdir(parents=True, exist_ok=True)
    (records_dir / SOURCES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pretraining_sources(records_dir: Path) -> dict[str, RecordKind]:
    """Names and kinds of the sources that pre-training reads.

    Conversations wait for SFT, and evaluation sources never enter a training stream.

    Args:
        records_dir: the artifact of `ingest`.
    """
    sources = _training_sources(records_dir)
    return {name: kind for name, kind in sources.items() if kind != RecordKind.CONVERSATION}


def conversation_sources(records_dir: Path) -> dict[str, RecordKind]:
    """Names and kinds of the sources that SFT reads; for arguments, see `pretraining_sources`."""
    sources = _training_sources(records_dir)
    return {name: kind for name, kind in sources.items() if kind == RecordKind.CONVERSATION}


def read_sources(records_dir: Path) -> dict[str, tuple[RecordKind, SourceSplit]]:
    """Kind and split of every source that records were made of, in their order."""
    content = json.loads((Path(records_dir) / SOURCES).read_text(encoding="utf-8"))
    return {
        name: (RecordKind(source["kind"]), SourceSplit(source["split"]))
        for name, source in content.items()
    }


def _training_sources(records_dir: Path) -> dict[str, RecordKind]:
    return {
        name: kind
        for name, (kind, split) in read_sources(records_dir).items()
        if split == SourceSplit.TRAIN
    }
