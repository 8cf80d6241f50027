"""What a raw file is by its content, for sources whose format says something else.

Readers put what they cannot read into quarantine and go on, which is right for a damaged file and
wrong for a source that was declared as something it is not: that would end without a record and
without an error. Only what is plainly another thing counts here; damage is left to the readers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import BinaryIO

from mm1_pipeline.config.ingest import ReaderLimits, SourceConfig
from mm1_pipeline.config.source_formats import Content, SourceFormat
from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.files import SourceFile, SourceFiles
from mm1_pipeline.corpus.readers.base import PassedOver, RawRecord, Source, is_files_fault
from mm1_pipeline.corpus.readers.dispatch import open_files, reader_of
from mm1_pipeline.ground.rejects import Rejected

_HEAD = 4_096
_TRIED_BYTES = 8_000_000
"""Size of a source of text up to which it is searched for a record before anything runs. Our
choice: as a rule the first entry is one."""
_FILES_LOOKED_AT = 20
_TAR_CHECKSUM = slice(148, 156)
_TRIED = (Content.JSON, Content.TABLE)
"""Contents that many formats share; each of the others has one format, or columns to tell."""
_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF document"),
    (b"ARROW1", "an Arrow file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"SQLite format", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
)


def content_of(stream: BinaryIO, name: str) -> Content | str | None:
    """What a file is.

    Args:
        stream: the file, open at its start, able to seek.
        name: of the file, for messages.

    Returns:
        The content of a format, plain or packed; words for something else that is known; None
        for what cannot be told, such as damage.
    """
    head = stream.read(_HEAD)
    if _is_tar(head):
        return Content.TAR
    if head.startswith(b"PAR1"):
        return Content.PARQUET
    if known := next((words for start, words in _OTHERS if head.startswith(start)), None):
        return known
    try:
        unpacked = next(decompression.read_chunks(stream, name), b"")
    except (Rejected, OSError):
        return None
    if unpacked[:_HEAD] != head and _is_tar(unpacked):
        return "a packed tar archive"
    if b"WARC/" in unpacked:
        return Content.WARC
    return _text_content(unpacked)


def _is_tar(head: bytes) -> bool:
    block = head[:512]
    try:
        said = int(block[_TAR_CHECKSUM].strip(b"\0 "), 8)
    except ValueError:
        return False
    fields = sum(block) - sum(block[_TAR_CHECKSUM]) + 8 * ord(" ")
    return len(block) == 512 and said == fields


def _text_content(data: bytes) -> Content | str | None:
    """JSON, a page or lines of text; None for what is no text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text or b"\0" in text:
        return None
    if text.startswith((b"{", b"[")):
        return Content.JSON
    if text[:100].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a page of HTML or XML"
    try:
        text[:_HEAD].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(text[:_HEAD]) - 4:
            return None
    return Content.TABLE


def content_problems(name: str, config: SourceConfig, limits: ReaderLimits) -> list[str]:
    """Whether the files of a source are plainly not what its format consists of.

    Args:
        name: of the source.
        config: its parameters.
        limits: of its readers.

    Returns:
        One text, or none: also where some files are of the format and others are not.
    """
    wanted = config.format.layout.content
    try:
        files = open_files(config)
    except (ImportError, OSError, ValueError):
        return []  # which other checks tell of
    kinds = {file.name: _kind(files, file) for file in itertools.islice(files, _FILES_LOOKED_AT)}
    # Of JSON whose start is damaged, and of a table whose first column has such a name, it is
    # tried whether they hold a record.
    same = {wanted, None} | (set(_TRIED) if wanted in _TRIED else set())
    if not kinds or same & set(kinds.values()):
        return []
    first, kind = next(iter(kinds.items()))
    found = kind.value if isinstance(kind, Content) else kind
    return [
        f"ingest.sources.{name}.format: found {config.format.value}, whose files are "
        f"{wanted.value}, and {first}, which is {found}; expected "
        f"{_fitting(config, limits, kind)}."
    ]


def record_problems(name: str, config: SourceConfig, limits: ReaderLimits) -> list[str]:
    """Whether a source of text has no record at all, as far as that can be seen in a moment.

    Args:
        name: of the source.
        config: its parameters, whose path and columns were found to fit.
        limits: of its readers.
    """
    files = open_files(config)
    is_tried = config.format.layout.content in _TRIED and 0 < files.bytes_total <= _TRIED_BYTES
    if not is_tried:
        return []
    record, faults = _first_record(Source(name, config, files, limits))
    if record is not None or not faults:
        return []
    (fault, number), *_ = faults.most_common(1)
    return [
        f"ingest.sources.{name}.format: found {config.format.value}, and nothing in "
        f"{config.path!r} that is a record of it ({fault}: {number} of {faults.total()}); expected "
        f"{_fitting(config, limits)}."
    ]


def formats_of(config: SourceConfig, limits: ReaderLimits) -> list[SourceFormat]:
    """Formats in which a source's path has a record, for somebody who named none or the wrong one.

    Args:
        config: gives the path and the columns; its format is left out.
        limits: of readers.
    """
    found = []
    for other in SourceFormat:
        if other is config.format:
            continue
        layout = other.layout
        try:
            tried = SourceConfig(
                kind=layout.kind,
                format=other,
                path=config.path,
                image_path=config.image_path,
                files=config.files,
                text_column=config.text_column,
                image_column=config.image_column,
            )
            files = open_files(tried)
            kinds = {_kind(files, f) for f in itertools.islice(files, _FILES_LOOKED_AT)}
            if layout.content not in kinds or files.bytes_total > 8 * _TRIED_BYTES:
                continue
            source = Source("s", tried, files, limits)
            if reader_of(other).problems(source) or _first_record(source)[0] is None:
                continue
        except Exception as error:
            if not is_files_fault(error) and not isinstance(error, ValueError | OSError):
                raise
            continue
        found.append(other)
    return found


def _fitting(config: SourceConfig, limits: ReaderLimits, kind: Content | str | None = None) -> str:
    """What to declare instead: formats that can read it, else those of such content."""
    if fitting := formats_of(config, limits):
        kinds = ", ".join(f"{other.value} (kind: {other.layout.kind.value})" for other in fitting)
        return f"{kinds}, which can read it"
    alike = [other for other in SourceFormat if other.layout.content == kind]
    if not alike:
        return "files of the format; docs/corpus.md says what each consists of"
    names = ", ".join(f"{other.value} ({other.layout.files[0]})" for other in alike)
    return f"one of the formats of {kind}, by their files' names: {names}"


def _kind(files: SourceFiles, file: SourceFile) -> Content | str | None:
    if file.unusable or not file.size:
        return None
    try:
        with files.open_aside(file) as stream:
            return content_of(stream, file.name)
    except (OSError, Rejected):
        return None


def _first_record(source: Source) -> tuple[RawRecord | None, Counter[str]]:
    """The first record of a source, and the reasons why what stands before it is none."""
    faults: Counter[str] = Counter()
    for item in reader_of(source.config.format).read(source):
        if isinstance(item, RawRecord):
            return item, faults
        if isinstance(item, PassedOver):  # Something of the format, though not what is wanted.
            return None, Counter()
        faults[item.why.reason.value] += 1
    return None, faults
