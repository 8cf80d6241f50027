"""Reads LLaVA / ShareGPT conversations: a JSON array (or JSON lines) beside the image files.

Only files directly in the folder are read; those below it belong to the images.
Unit of `read`: one conversation. `image` is a file name or a list of them; each `<image>` tag in
the turns is the place of the next one. Only the human and the assistant may speak.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from mm1_pipeline.corpus import decompression, json_streams
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.annotations import image_by_name, open_image_folder
from mm1_pipeline.corpus.readers.base import (
    Item,
    RawRecord,
    RejectedRecord,
    Source,
    read_each_file,
)
from mm1_pipeline.corpus.records import Role, Segment

_TAG = "<image>"
_ROLES = {
    "human": Role.HUMAN,
    "user": Role.HUMAN,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
}


def read(source: Source) -> Iterator[Item]:
    """Reads all conversation files."""
    return read_each_file(source, partial(_read_conversations, open_image_folder(source)))


def _read_conversations(folder: ImageFolder, source: Source, file: SourceFile) -> Iterator[Item]:
    with source.files.open(file) as stream:
        chunks = decompression.read_chunks(stream, file.name)
        is_array = file.name.endswith(".json")
        parse = json_streams.iterate_array if is_array else json_streams.iterate_lines
        for number, entry in parse(chunks, source.limits.max_line_bytes):
            key = f"{file.stem}/{number:08d}"
            try:
                yield _to_record(folder, key, entry)
            except Rejected as error:
                yield RejectedRecord(key, error)


def _to_record(folder: ImageFolder, key: str, entry: Any) -> RawRecord:
    if isinstance(entry, Rejected):
        raise entry
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise Rejected(Reason.MALFORMED_RECORD, "found no list 'conversations'")
    segments = [
        segment for turn in entry["conversations"] for segment in _to_segments(*_read_turn(turn))
    ]
    speakers = {segment.role for segment in segments}
    if speakers != {Role.HUMAN, Role.ASSISTANT}:
        found = f"found turns of {', '.join(sorted(map(str, speakers))) or 'nobody'}"
        raise Rejected(Reason.MALFORMED_RECORD, f"{found}, expected human and assistant")
    names = _image_names(entry.get("image"))
    segments, num_tags = _number_images(segments)
    if num_tags != len(names):
        raise Rejected(
            Reason.IMAGE_TAG_MISMATCH, f"found {num_tags} {_TAG} tags for {len(names)} images"
        )
    images = tuple(image_by_name(folder, name) for name in names)
    metadata = {name: entry[name] for name in entry if name != "conversations"}
    return RawRecord(key, tuple(segments), images, metadata=metadata)


def _read_turn(turn: Any) -> tuple[Role, str]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    text = turn.get("value") if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise Rejected(Reason.MALFORMED_RECORD, "found a turn without 'from' or 'value'")
    if speaker not in _ROLES:
        known = ", ".join(_ROLES)
        raise Rejected(Reason.UNKNOWN_ROLE, f"found {speaker!r}, expected one of {known}")
    return _ROLES[speaker], text


def _to_segments(role: Role, text: str) -> Iterator[Segment]:
    """Cuts a turn at its tags; every tag becomes image 0 until all are counted."""
    for place, part in enumerate(text.split(_TAG)):
        if place:
            yield Segment.of_image(0, role)
        if part.strip():
            yield Segment.of_text(part, role)


def _number_images(segments: list[Segment]) -> tuple[list[Segment], int]:
    numbered: list[Segment] = []
    count = 0
    for segment in segments:
        if segment.image is None:
            numbered.append(segment)
        else:
            numbered.append(Segment.of_image(count, segment.role))
            count += 1
    return numbered, count


def _image_names(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
