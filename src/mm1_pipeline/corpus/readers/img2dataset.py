"""Reads img2dataset's output: tar shards of samples, with a table of the samples beside each.

Unit of `read`: one sample, the members of a shard that share a name up to the first dot. What a
shard's table calls downloaded and the shard lacks is one unit as well. Samples that the table
calls failed were never there and are not counted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from mm1_pipeline.corpus import json_streams
from mm1_pipeline.corpus.files import SourceFile, read_limited, safe_name
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.base import (
    FILE_ERRORS,
    Item,
    RawImage,
    RejectedRecord,
    Source,
    caption_record,
    file_error,
    read_each_file,
)

_READ_SUFFIXES = IMAGE_SUFFIXES | {"txt", "json"}
_END_OF_ARCHIVE_BYTES = 2 * tarfile.BLOCKSIZE
_SUCCESS = "success"


def read(source: Source) -> Iterator[Item]:
    """Reads all shards."""
    return read_each_file(source, _read_shard)


@dataclass
class _Sample:
    """Members of a shard that share a name."""

    name: str
    members: dict[str, bytes] = field(default_factory=dict)
    refused: Rejected | None = None


def _read_shard(source: Source, file: SourceFile) -> Iterator[Item]:
    seen: set[str] = set()
    with source.files.open(file) as stream:
        for sample in _read_samples(source, stream):
            key = f"{file.stem}/{sample.name}"
            if sample.name in seen:
                why = Rejected(Reason.DUPLICATE_KEY, "found a second sample of this name")
                yield RejectedRecord(key, why)
                continue
            seen.add(sample.name)
            yield _to_item(source, key, sample)
    yield from _missing_samples(source, file, seen)


def _read_samples(source: Source, stream: BinaryIO) -> Iterator[_Sample]:
    """Groups neighbouring members by name, reading the archive from front to end once."""
    sample: _Sample | None = None
    number = 0
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            # tarfile would remember every member.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            if (number := number + 1) > source.limits.max_members:
                raise Rejected(
                    Reason.TOO_MANY_MEMBERS, f"found more than {source.limits.max_members} members"
                )
            if member.isdir():
                continue
            name, suffix = _split_name(member.name)
            if sample is not None and sample.name != name:
                yield sample
                sample = None
            sample = sample or _Sample(name)
            try:
                _add_member(source, archive, member, suffix, sample)
            except Rejected as error:
                sample.refused = error
        _check_end(stream, archive.offset)
    if sample is not None:
        yield sample


def _check_end(stream: BinaryIO, position: int) -> None:
    """Makes sure that the archive was read to its end mark: two empty blocks, then nothing.

    tarfile itself takes any later block that is no header for the end, so that an archive that
    is cut between two members, or damaged inside, looks complete.

    Raises:
        Rejected: the mark is missing, or something else stands in its place.
    """
    stream.seek(position)
    length, only_zeros = 0, True
    while chunk := stream.read(1 << 20):
        length += len(chunk)
        only_zeros = only_zeros and not chunk.strip(b"\0")
    if length < tarfile.BLOCKSIZE or (only_zeros and length < _END_OF_ARCHIVE_BYTES):
        raise Rejected(Reason.TRUNCATED_FILE, f"found no end mark at byte {position}")
    if not only_zeros:
        raise Rejected(Reason.UNREADABLE_FILE, f"found no member at byte {position}")


def _add_member(
    source: Source,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    suffix: str,
    sample: _Sample,
) -> None:
    """Reads one member into memory; nothing of an archive is ever written to disk.

    Raises:
        Rejected: the member is not a plain file with a harmless name and size.
    """
    if safe_name(member.name) is None:
        raise Rejected(Reason.UNSAFE_PATH, f"found the member {member.name!r}")
    if not member.isreg():
        raise Rejected(
            Reason.UNSAFE_MEMBER, f"found {member.name!r}, a link or a device, expected a file"
        )
    if suffix not in _READ_SUFFIXES:
        return
    limit = source.limits.max_member_bytes
    if member.size > limit:
        raise Rejected(
            Reason.MEMBER_TOO_LARGE, f"{member.name!r}: found {member.size} bytes, allowed {limit}"
        )
    content = archive.extractfile(member)
    assert content is not None, member.name
    sample.members[suffix] = read_limited(content, limit, member.name)


def _to_item(source: Source, key: str, sample: _Sample) -> Item:
    if sample.refused is not None:
        return RejectedRecord(key, sample.refused)
    try:
        metadata = _read_metadata(sample)
        caption = _read_caption(source, sample, metadata)
    except Rejected as error:
        return RejectedRecord(key, error)
    data = next((data for suffix, data in sample.members.items() if _is_image(suffix)), None)
    image = None if data is None else RawImage.of(data, _as_text(metadata.get("url")))
    rest = {name: value for name, value in metadata.items() if name != source.config.text_column}
    return caption_record(source, key, image, caption, rest)


def _read_metadata(sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    metadata = json_streams.parse(sample.members["json"])
    if isinstance(metadata, Rejected):
        raise metadata
    if not isinstance(metadata, dict):
        raise Rejected(Reason.MALFORMED_RECORD, "expected a JSON object of metadata")
    return metadata


def _read_caption(source: Source, sample: _Sample, metadata: dict[str, Any]) -> Any:
    """The configured field of the metadata (a re-captioned set has several), else the text."""
    if metadata.get(source.config.text_column):
        return metadata[source.config.text_column]
    try:
        return sample.members.get("txt", b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UTF8, str(error)) from None


def _missing_samples(source: Source, file: SourceFile, seen: set[str]) -> Iterator[Item]:
    """What the shard's table promises and the shard lacks."""
    table = source.files.find(f"{file.name.removesuffix('.tar')}.parquet")
    if table is None:
        return
    try:
        promised = _promised_samples(source, table)
    except FILE_ERRORS as error:
        yield RejectedRecord(table.name, file_error(error))
        return
    for name in promised:
        if name not in seen:
            why = Rejected(Reason.MISSING_FROM_ARCHIVE, "the table says it was downloaded")
            yield RejectedRecord(f"{file.stem}/{name}", why)


def _promised_samples(source: Source, table: SourceFile) -> list[str]:
    with source.files.open_aside(table) as stream, pq.ParquetFile(stream) as parquet:
        if not {"key", "status"} <= set(parquet.schema_arrow.names):
            return []
        rows = parquet.read(columns=["key", "status"]).to_pylist()
    return [str(row["key"]) for row in rows if row["status"] == _SUCCESS]


def _split_name(name: str) -> tuple[str, str]:
    """`images/000.seg.jpg` -> (`images/000`, `seg.jpg`), as WebDataset groups members."""
    path = PurePosixPath(name)
    base, _, suffix = path.name.partition(".")
    return (str(path.with_name(base)), suffix.lower()) if base else (name, "")


def _is_image(suffix: str) -> bool:
    return suffix in IMAGE_SUFFIXES


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
