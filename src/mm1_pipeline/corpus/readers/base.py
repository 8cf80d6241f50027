"""What every reader gives, and how a broken file ends only itself."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mm1_pipeline.annotations.records import PassedOver
from mm1_pipeline.config.ingest import ReaderLimits, RecordKind, SourceConfig, SourceSplit
from mm1_pipeline.corpus.files import SourceFile, SourceFiles
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.ground.rejects import Reason, Rejected


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image that a record refers to, not yet read."""

    load: Callable[[], bytes]
    """Gives the encoded image, or raises Rejected."""
    url: str | None = None

    @classmethod
    def of(cls, data: bytes, url: str | None = None) -> RawImage:
        """An image whose bytes are at hand."""
        return cls(lambda: data, url)

    @classmethod
    def refused(cls, why: Rejected, url: str | None = None) -> RawImage:
        """An image of which it is known already why it cannot be had."""

        def fail() -> bytes:
            raise why

        return cls(fail, url)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record as the raw format has it: nothing checked, nothing filtered."""

    key: str
    segments: tuple[Segment, ...]
    images: tuple[RawImage, ...] = ()
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """Something that is no record, or a file of which an unknown rest cannot be read."""

    key: str
    why: Rejected


Item = RawRecord | RejectedRecord
"""One unit of `read`."""
T = TypeVar("T")
Found = Item | PassedOver
"""What a reader yields."""


@dataclass(frozen=True)
class Source:
    """Everything a reader needs to know."""

    name: str
    config: SourceConfig
    files: SourceFiles
    limits: ReaderLimits
    prepared: Path | None = None
    """Folder with what was found out about the whole source, where partitions share that."""

    @property
    def is_evaluation(self) -> bool:
        """Whether answers are references to score against, not text to learn."""
        return self.config.split == SourceSplit.EVALUATION

    def parameter(self, field_name: str) -> str:
        """Path of one of the source's parameters, for messages."""
        return f"ingest.sources.{self.name}.{field_name}"


@dataclass(frozen=True, slots=True)
class Reader:
    """How a format is read. A module of readers names those of its formats in `READERS`."""

    read: Callable[[Source], Iterator[Found]]
    """Gives the records of a source, in the order of its files."""
    problems: Callable[[Source], list[str]]
    """Parameters that do not fit the files, as far as that shows before anything is read: each
    line begins with a parameter's path."""


def no_problems(source: Source) -> list[str]:
    """Of formats whose parameters nothing can be said about before they are read."""
    del source
    return []


class SourceParameterError(ValueError):
    """The parameters do not fit the files: a user's mistake, which no record is rejected for."""


_NOT_THE_FILES_FAULT = (
    SourceParameterError, MemoryError, PermissionError, FileNotFoundError, TimeoutError,
    ConnectionError,
)  # fmt: skip
_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_files_fault(error: BaseException) -> bool:
    """Whether an error comes from what a file holds, and so costs that file or record alone.

    It does not where the machine has run out of something, where a store cannot be reached, or
    where parameters are wrong: then going on would empty the corpus, and the run must stop. Of
    damaged files libraries raise nearly everything else, RecursionError and SystemError included.
    """
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return False
    return isinstance(error, Exception) and not isinstance(error, _NOT_THE_FILES_FAULT)


def read_each_file(
    source: Source, read_file: Callable[[Source, SourceFile], Iterator[Found]]
) -> Iterator[Found]:
    """Reads one file after the other; damage to one costs its rest, as one rejected unit.

    Args:
        source: its files are read in order; one that cannot be is rejected, the rest go on.
        read_file: reads one file, and may raise whatever a damaged file makes it raise.
    """
    for file in source.files:
        yield from read_guarded(source, file, read_file)


def read_guarded(
    source: Source, file: SourceFile, read_file: Callable[[Source, SourceFile], Iterator[Found]]
) -> Iterator[Found]:
    """Reads one file; see `read_each_file`."""
    if file.size == 0 and not file.unusable:
        yield RejectedRecord(file.name, Rejected(Reason.EMPTY_FILE, "found 0 bytes"))
        return
    try:
        yield from read_file(source, file)
    except Rejected as error:
        yield RejectedRecord(file.name, error)
    except Exception as error:
        if not is_files_fault(error):
            raise
        yield RejectedRecord(file.name, file_error(error))


def read_one(key: str, read_record: Callable[[], T]) -> T | RejectedRecord:
    """Reads one record; whatever is wrong with it costs it alone, its neighbours stay.

    Args:
        key: of the record, should it be rejected.
        read_record: gives it, and may raise whatever its content makes it raise.
    """
    try:
        return read_record()
    except Exception as error:
        return RejectedRecord(key, record_fault(error))


def record_fault(error: Exception) -> Rejected:
    """Why a record is rejected that raised an error; raises it again if no record is to blame."""
    if isinstance(error, Rejected):
        return error
    if not is_files_fault(error):
        raise error
    return Rejected(Reason.MALFORMED_RECORD, f"{type(error).__name__}: {error}")


def file_error(error: BaseException) -> Rejected:
    """Names what is wrong with a file that a library could not read."""
    lowered = str(error).lower()
    cut = any(word in lowered for word in ("unexpected end", "truncated", "end of data"))
    reason = Reason.TRUNCATED_FILE if cut else Reason.UNREADABLE_FILE
    return Rejected(reason, f"{type(error).__name__}: {error}")


def caption_record(
    source: Source,
    key: str,
    image: RawImage | None,
    caption: Any,
    metadata: Mapping[str, Any],
) -> Item:
    """A pair of image and caption; half of a pair is rejected.

    In evaluation sources the caption is a reference, not part of what the model sees. Read as a
    conversation, the prompt is the human's turn and the caption the assistant's.
    """
    if caption is not None and not isinstance(caption, str):
        found = f"found a caption of type {type(caption).__name__}, expected text"
        return RejectedRecord(key, Rejected(Reason.MALFORMED_RECORD, found))
    if image is None:
        return RejectedRecord(key, Rejected(Reason.CAPTION_WITHOUT_IMAGE))
    if not caption or not caption.strip():
        return RejectedRecord(key, Rejected(Reason.IMAGE_WITHOUT_CAPTION))
    if source.is_evaluation:
        return RawRecord(key, (Segment.of_image(0),), (image,), (caption,), metadata)
    if source.config.kind != RecordKind.CONVERSATION:
        segments = (Segment.of_image(0), Segment.of_text(caption))
        return RawRecord(key, segments, (image,), (), metadata)
    turns = (
        Segment.of_image(0, Role.HUMAN),
        Segment.of_text(source.config.conversation_prompt, Role.HUMAN),
        Segment.of_text(caption, Role.ASSISTANT),
    )
    return RawRecord(key, turns, (image,), (), metadata)
