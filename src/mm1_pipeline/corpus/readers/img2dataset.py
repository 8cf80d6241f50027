"""Reads img2dataset's output: tar shards of samples, with a table of the samples beside each.

Unit of `read`: one sample, the members of a shard whose names are alike up to a known suffix,
wherever in the shard they lie (`photo.v1.7.jpg` and `photo.v1.7.txt` are sample `photo.v1.7`). What
a shard's table calls downloaded and the shard lacks is one unit as well, and so is every place
that is damaged. Samples that the table calls failed were never there and are not counted.

WebDataset cuts names at the first dot. Where that matters, its reading is kept: `7.mask.png`
without a text of its own is a field of sample `7`, which is passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from mm1_pipeline.annotations import json_files
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import SourceFile, safe_name
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    PassedOver,
    RawImage,
    Reader,
    RejectedRecord,
    Source,
    caption_record,
    file_error,
    is_files_fault,
    no_problems,
    read_each_file,
    read_one,
)
from mm1_pipeline.corpus.tar_archives import Damage, Member, MemberType, list_members
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected, storable

_IMAGE, _TEXT, _METADATA = "image", "text", "metadata"
_KINDS = {
    **dict.fromkeys((f".{suffix}" for suffix in IMAGE_SUFFIXES), _IMAGE),
    ".txt": _TEXT,
    ".json": _METADATA,
}
"""What the members of a sample are, by their suffixes."""
_MOST_FIELDS_IN_A_NAME = 8
_SUCCESS = "success"


@dataclass(eq=False)
class _Sample:
    """Members of a shard that share a name."""

    name: str
    is_repeated: bool
    """Whether an earlier sample has the same name."""
    members: dict[str, Member] = field(default_factory=dict)
    """By what they are."""
    suffixes: set[str] = field(default_factory=set)
    refused: Rejected | None = None
    is_counted: bool = False
    """Whether it is passed over, or lost to damage that is a unit of its own."""


@dataclass
class _Contents:
    """What the headers of a shard tell."""

    samples: dict[str, list[_Sample]] = field(default_factory=dict)
    """By name; several of one name where members repeat."""
    rejected: list[RejectedRecord] = field(default_factory=list)
    passed_over: Counter[Passed] = field(default_factory=Counter)
    damages: list[tuple[Damage, list[_Sample]]] = field(default_factory=list)
    """With the samples that may have lost members to each."""


def read(source: Source) -> Iterator[Found]:
    """Reads all shards."""
    return read_each_file(source, _read_shard)


def _read_shard(source: Source, file: SourceFile) -> Iterator[Found]:
    with source.files.open_aside(file) as stream:
        contents = _list_contents(source, file, stream)
    _pass_over_fields(contents)
    damaged = _count_damage(contents, file)
    for why, count in sorted(contents.passed_over.items()):
        yield PassedOver(why, count)
    with source.files.open(file) as stream:
        for sample in (sample for group in contents.samples.values() for sample in group):
            if not sample.is_counted:
                key = f"{file.key}/{sample.name}"
                yield read_one(key, partial(_to_item, source, key, sample, stream))
    yield from contents.rejected
    yield from damaged
    yield from _missing_samples(source, file, contents.samples)


def _list_contents(source: Source, file: SourceFile, stream: BinaryIO) -> _Contents:
    """Groups members by name: in one pass over the headers, for they may lie anywhere."""
    contents = _Contents()
    behind: _Sample | None = None
    is_damaged = False
    for found in list_members(stream, source.limits.max_members):
        if isinstance(found, Member):
            sample = _add_member(contents, source, file, found)
            if sample is not None and is_damaged and sample not in contents.damages[-1][1]:
                contents.damages[-1][1].append(sample)
            behind, is_damaged = sample or behind, is_damaged and sample is None
            continue
        if found.member is not None:
            behind = _add_member(contents, source, file, found.member)
            if behind is not None:
                behind.refused = found.why
        touched = [] if behind is None or found.is_after_end else [behind]
        contents.damages.append((found, touched))
        behind, is_damaged = None, True
    return contents


def _add_member(
    contents: _Contents, source: Source, file: SourceFile, member: Member
) -> _Sample | None:
    """Puts a member to the others of its sample; None where it belongs to none."""
    path = PurePosixPath(member.name)
    kind = _KINDS.get(path.suffix.lower())
    if passed := _pass_over(path, member):
        contents.passed_over[passed] += 1
        return None
    why = member.why or _refuse(member, source.limits.max_member_bytes)
    if kind is None:
        if why is None:
            contents.passed_over[Passed.OTHER_MEMBER] += 1
        else:
            contents.rejected.append(RejectedRecord(f"{file.key}/{storable(member.name)}", why))
        return None
    name = storable(str(path.with_name(path.stem)))
    group = contents.samples.setdefault(name, [])
    suffix = path.suffix.lower()
    sample = next((s for s in (*group[:1], *group[-1:]) if suffix not in s.suffixes), None)
    if sample is None:
        sample = _Sample(name, is_repeated=bool(group))
        group.append(sample)
    sample.suffixes.add(suffix)
    if why is not None:
        sample.refused = why
    elif kind in sample.members:  # a second picture
        contents.passed_over[Passed.OTHER_MEMBER] += 1
    else:
        sample.members[kind] = member
    return sample


def _pass_over(path: PurePosixPath, member: Member) -> Passed | None:
    if member.type == MemberType.DIRECTORY:
        return Passed.DIRECTORY
    if path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts:
        return Passed.RESOURCE_FORK
    return Passed.OTHER_MEMBER if member.type == MemberType.LABEL else None


def _refuse(member: Member, limit: int) -> Rejected | None:
    """Why a member is not read; nothing of an archive is ever written to disk."""
    if safe_name(member.name) is None:
        return Rejected(Reason.UNSAFE_PATH, f"found the member {member.name!r}")
    if member.type == MemberType.SPECIAL:
        found = f"found {member.name!r}, a link, a device or a file with holes, expected a file"
        return Rejected(Reason.UNSAFE_MEMBER, found)
    if member.size > limit:
        found = f"{member.name!r}: found {member.size} bytes, allowed {limit}"
        return Rejected(Reason.MEMBER_TOO_LARGE, found)
    return None


def _pass_over_fields(contents: _Contents) -> None:
    """Passes over what is no sample but one more field of another one."""
    for name, group in contents.samples.items():
        sample = group[0]
        is_pair = _IMAGE in sample.members and len(sample.members) > 1
        if is_pair or sample.refused is not None or len(group) > 1:
            continue
        folder, slash, base = name.rpartition("/")
        for _ in range(_MOST_FIELDS_IN_A_NAME):
            base, dot, _ = base.rpartition(".")
            if dot and folder + slash + base in contents.samples:
                contents.passed_over[Passed.OTHER_MEMBER] += len(sample.members)
                sample.is_counted = True
                break


def _count_damage(contents: _Contents, file: SourceFile) -> list[RejectedRecord]:
    """Every place of damage is a unit, and so is every further sample that was lost to it.

    A sample beside damage is whole where it has everything that others in the shard have. What
    a cut takes away behind the last sample nobody can tell.
    """
    units: list[RejectedRecord] = []
    samples = [sample for group in contents.samples.values() for sample in group]
    usual = {kind for sample in samples for kind in sample.members}
    for number, (damage, touched) in enumerate(contents.damages, start=1):
        lost = [
            sample
            for sample in touched
            if not sample.is_counted
            and (damage.is_last or sample.refused is damage.why or usual > set(sample.members))
        ]
        place = file.name if number == 1 else f"{file.name}#{number}"
        detail = damage.why.detail + (f"; sample {lost[0].name!r} is lost" if lost else "")
        units.append(RejectedRecord(place, Rejected(damage.why.reason, detail)))
        units += [RejectedRecord(f"{file.key}/{sample.name}", damage.why) for sample in lost[1:]]
        for sample in lost:
            sample.is_counted = True
    return units


def _to_item(source: Source, key: str, sample: _Sample, stream: BinaryIO) -> Item:
    if sample.is_repeated:
        raise Rejected(Reason.DUPLICATE_KEY, "found a second sample of this name")
    if sample.refused is not None:
        raise sample.refused
    metadata = _read_metadata(sample, stream)
    caption = _read_caption(source, sample, stream, metadata)
    image = None
    if _IMAGE in sample.members:
        url = metadata.get("url")
        data = _read_member(stream, sample.members[_IMAGE])
        image = RawImage.of(data, url if isinstance(url, str) else None)
    rest = {name: value for name, value in metadata.items() if name != source.config.text_column}
    return caption_record(source, key, image, caption, rest)


def _read_member(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.offset)
    data = stream.read(member.size)
    if len(data) < member.size:
        raise Rejected(Reason.TRUNCATED_FILE, f"found {len(data)} of {member.size} bytes")
    return data


def _read_metadata(sample: _Sample, stream: BinaryIO) -> dict[str, Any]:
    if _METADATA not in sample.members:
        return {}
    metadata = json_files.parse(_read_member(stream, sample.members[_METADATA]))
    if isinstance(metadata, Rejected):
        raise metadata
    if not isinstance(metadata, dict):
        raise Rejected(Reason.MALFORMED_RECORD, "expected a JSON object of metadata")
    return metadata


def _read_caption(
    source: Source, sample: _Sample, stream: BinaryIO, metadata: dict[str, Any]
) -> Any:
    """The configured field of the metadata (a re-captioned set has several), else the text."""
    if metadata.get(source.config.text_column):
        return metadata[source.config.text_column]
    if _TEXT not in sample.members:
        return ""
    try:
        return _read_member(stream, sample.members[_TEXT]).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UTF8, str(error)) from None


def _missing_samples(source: Source, file: SourceFile, seen: Collection[str]) -> Iterator[Item]:
    """What the shard's table promises and the shard lacks."""
    table = source.files.find(f"{file.name[: -len('.tar')]}.parquet")
    if table is None:
        return
    try:
        promised = _promised_samples(source, table)
    except Exception as error:
        if not is_files_fault(error):
            raise
        yield RejectedRecord(table.name, file_error(error))
        return
    for name in promised:
        if name not in seen:
            why = Rejected(Reason.MISSING_FROM_ARCHIVE, "the table says it was downloaded")
            yield RejectedRecord(f"{file.key}/{name}", why)


def _promised_samples(source: Source, table: SourceFile) -> list[str]:
    with source.files.open_aside(table) as stream, pq.ParquetFile(stream) as parquet:
        if not {"key", "status"} <= set(parquet.schema_arrow.names):
            return []
        rows = parquet.read(columns=["key", "status"]).to_pylist()
    return [str(row["key"]) for row in rows if row["status"] == _SUCCESS]


READERS = {SourceFormat.IMG2DATASET: Reader(read, no_problems)}
