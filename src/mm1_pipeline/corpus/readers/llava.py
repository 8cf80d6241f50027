"""Reads LLaVA / ShareGPT conversations: a JSON array (or JSON lines) beside the image files.

Only files directly in the folder are read; those below it belong to the images. Unit of `read`:
one conversation, or one exchange with `split_exchanges`. The turns lie under `conversations`
(`from`, `value`) or `messages` (`role`, `content`); `image` or `images` is a file name or a
list of them, and each `<image>` tag in the turns is the place of the next one. A system turn
may come first; then human and assistant take turns, the human first and the assistant last.
Anything else is rejected, with its reason.

In evaluation sources a conversation is one question, and its answer the reference.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from functools import partial
from typing import Any

from mm1_pipeline.annotations.records import ImageName, as_name
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus import decompression, json_streams
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import SourceFile, whole_suffix
from mm1_pipeline.corpus.readers.annotations import (
    annotated_image,
    image_folder_problems,
    open_image_folder,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    PassedOver,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    read_each_file,
    read_one,
)
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected

_TAG = "<image>"
_ROLES = {
    "human": Role.HUMAN,
    "user": Role.HUMAN,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "bard": Role.ASSISTANT,
    "bing": Role.ASSISTANT,
    "system": Role.SYSTEM,
}

Turn = tuple[Role, str]


def read(source: Source) -> Iterator[Found]:
    """Reads all conversation files."""
    return read_each_file(
        source, partial(_read_conversations, AnnotatedImages(open_image_folder(source)))
    )


def _read_conversations(
    images: AnnotatedImages, source: Source, file: SourceFile
) -> Iterator[Found]:
    with source.files.open(file) as stream:
        chunks = decompression.read_chunks(stream, file.name.lower())
        is_array = ".jsonl" not in whole_suffix(file.name)
        parse = json_streams.iterate_array if is_array else json_streams.iterate_lines
        for number, entry in parse(chunks, source.limits.max_line_bytes):
            if not _is_wanted(entry, source.config.ids):
                yield PassedOver(Passed.OTHER_ENTRY)
                continue
            key = f"{file.key}/{number:08d}"
            record = read_one(key, partial(_to_record, images, key, entry))
            if isinstance(record, RejectedRecord):
                yield record
            elif source.is_evaluation:
                yield read_one(key, partial(_to_question, record))
            elif source.config.split_exchanges:
                yield from _split_exchanges(record)
            else:
                yield record


def _is_wanted(entry: Any, ids: str) -> bool:
    """Whether an entry is the source's by its `id`; damaged entries are, to be listed."""
    if ids == "*" or not isinstance(entry, dict):
        return True
    return fnmatch.fnmatchcase(as_name(entry.get("id")) or "", ids)


def _to_record(images: AnnotatedImages, key: str, entry: Any) -> RawRecord:
    if isinstance(entry, Rejected):
        raise entry
    turns = [_read_turn(turn) for turn in _find_turns(entry)]
    _check_order([role for role, _ in turns])
    segments = [segment for turn in turns for segment in _to_segments(*turn)]
    names = _image_names(entry)
    segments, num_tags = _number_images(segments)
    if num_tags != len(names):
        raise Rejected(
            Reason.IMAGE_TAG_MISMATCH, f"found {num_tags} {_TAG} tags for {len(names)} images"
        )
    shown = tuple(annotated_image(images, ImageName(name)) for name in names)
    metadata = {name: entry[name] for name in entry if name not in ("conversations", "messages")}
    return RawRecord(key, tuple(segments), shown, metadata=metadata)


def _to_question(record: RawRecord) -> RawRecord:
    """The question of a conversation of one exchange, with its answer as the reference."""
    asked = tuple(s for s in record.segments if s.role == Role.HUMAN)
    answers = [s.text for s in record.segments if s.role == Role.ASSISTANT and s.text]
    if len(asked) + len(answers) != len(record.segments) or len(answers) != 1:
        found = f"found {len(answers)} answers"
        raise Rejected(Reason.MALFORMED_RECORD, f"{found}, expected one question and its answer")
    return RawRecord(record.key, asked, record.images, (answers[0],), record.metadata)


def _split_exchanges(record: RawRecord) -> Iterator[RawRecord]:
    """Each question with its answer, the system turn, and the images shown up to it."""
    system = [s for s in record.segments if s.role == Role.SYSTEM]
    seen: list[Segment] = []
    exchange: list[Segment] = []
    number = 0
    for segment in record.segments[len(system) :]:
        if exchange and exchange[-1].role == Role.ASSISTANT and segment.role == Role.HUMAN:
            yield _exchange(record, number, [*system, *seen, *exchange])
            seen += [s for s in exchange if s.image is not None]
            exchange, number = [], number + 1
        exchange.append(segment)
    yield _exchange(record, number, [*system, *seen, *exchange])


def _exchange(record: RawRecord, number: int, segments: list[Segment]) -> RawRecord:
    shown = record.images[: sum(segment.image is not None for segment in segments)]
    return RawRecord(f"{record.key}.{number}", tuple(segments), shown, metadata=record.metadata)


def _find_turns(entry: Any) -> list[Any]:
    found = None
    if isinstance(entry, dict):
        found = entry.get("conversations", entry.get("messages"))
    if not isinstance(found, list):
        raise Rejected(Reason.MALFORMED_RECORD, "found no list 'conversations' or 'messages'")
    if not found:
        raise Rejected(Reason.CONVERSATION_EMPTY, "found no turn")
    return found


def _read_turn(turn: Any) -> Turn:
    fields = turn if isinstance(turn, dict) else {}
    speaker = fields.get("from", fields.get("role"))
    text = fields.get("value", fields.get("content"))
    if not isinstance(speaker, str) or not isinstance(text, str):
        expected = "'from' and 'value', or 'role' and 'content'"
        raise Rejected(Reason.MALFORMED_RECORD, f"found a turn without {expected} as texts")
    if speaker not in _ROLES:
        known = ", ".join(_ROLES)
        raise Rejected(Reason.UNKNOWN_ROLE, f"found {speaker!r}, expected one of {known}")
    role = _ROLES[speaker]
    if not text.strip():
        raise Rejected(Reason.TURN_EMPTY, f"found an empty turn of the {role.value}")
    if role != Role.HUMAN and _TAG in text:
        raise Rejected(Reason.IMAGE_IN_ANSWER, f"found {_TAG} in a turn of the {role.value}")
    return role, text


def _check_order(roles: list[Role]) -> None:
    """Human and assistant in turns, the human first, the assistant last.

    Raises:
        Rejected: in any other order; an answer to nothing, or a question without an answer,
            would teach the wrong thing.
    """
    spoken = roles[1:] if roles[0] == Role.SYSTEM else roles
    expected = [Role.HUMAN, Role.ASSISTANT] * (len(spoken) // 2)
    if not spoken or spoken != expected:
        found = ", ".join(role.value for role in roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise Rejected(
            Reason.TURNS_NOT_ALTERNATING,
            f"found turns of {found}; expected human, assistant, human, assistant, ...",
        )


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


def _image_names(entry: dict[str, Any]) -> list[Any]:
    value = entry.get("image", entry.get("images"))
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


READERS = {SourceFormat.LLAVA: Reader(read, image_folder_problems)}
