"""Reads folders of pictures beside a CSV or TSV of their captions.

The first row names the columns; which are the picture's and the caption's, the parameters say.
Fields are parted by the sign that parts the names (comma, semicolon, tab or bar), and quoted as
RFC 4180 has it. Unit of `read`: in training sources one row, which becomes a pair of its own; in
evaluation sources one picture, whose captions become its references.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from mm1_pipeline.annotations.json_files import as_utf8
from mm1_pipeline.annotations.records import ImageCall, ImageName
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.readers.annotations import (
    annotated_image,
    image_folder_problems,
    open_image_folder,
    read_content,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    SourceParameterError,
    caption_record,
    is_files_fault,
    read_each_file,
)
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.ground.rejects import Reason, Rejected

_DELIMITERS = ",;\t|"
_MAX_LINES = 100
"""Of one row: a quote that is never closed must not swallow the rows behind it. Our choice."""
_MAX_HEAD = 4_096
_ROWS_LOOKED_AT = 100
_ADDRESS = ("http://", "https://", "s3://", "data:")


class _Row(NamedTuple):
    """A row: where it is, the picture's name, the caption, and what else it says."""

    number: int
    image: str
    text: str
    others: dict[str, str]


@dataclass
class _Picture:
    """What an evaluation source says of a picture."""

    first: _Row
    references: list[str] = field(default_factory=list)


def read(source: Source) -> Iterator[Found]:
    """Reads all tables."""
    images = AnnotatedImages(open_image_folder(source))

    def read_file(source: Source, file: SourceFile) -> Iterator[Found]:
        rows = _rows(source, file, _lines(read_content(source, file)))
        if source.is_evaluation:
            yield from _pictures(images, source, file, rows)
            return
        for number, row in rows:
            key = f"{file.key}/{number:08d}"
            if isinstance(row, Rejected):
                yield RejectedRecord(key, row)
            else:
                image = annotated_image(images, _image_name(row.image)) if row.image else None
                yield caption_record(source, key, image, row.text, row.others)

    return read_each_file(source, read_file)


def problems(source: Source) -> list[str]:
    """Columns that no table has, and pictures that the first table does not name a file by."""
    if found := image_folder_problems(source):
        return found
    rows: list[_Row] = []
    for file in source.files:
        try:
            with source.files.open_aside(file) as stream:
                head = next(decompression.read_chunks(stream, file.name.lower()), b"")
            items = itertools.islice(_rows(source, file, _lines(head)), _ROWS_LOOKED_AT)
            of_file = [row for _, row in items if isinstance(row, _Row) and row.image]
        except SourceParameterError as error:
            found += str(error).splitlines()
        except Exception as error:  # damage is found, and counted, by reading
            if not is_files_fault(error):
                raise
        else:
            if of_file and not rows:
                rows = of_file
                found += _picture_problems(source, file, [row.image for row in rows])
    return found


def _picture_problems(source: Source, file: SourceFile, names: list[str]) -> list[str]:
    """Whether the first names of a table are no files, one and all."""
    if any(name.lower().startswith(_ADDRESS) for name in names):
        return [
            f"{source.parameter('image_column')}: found addresses, such as {names[0]!r}, in "
            f"{file.name}, expected names of files; pictures that a table only names by their "
            "address are fetched first, by the stage `download`."
        ]
    images = AnnotatedImages(open_image_folder(source))
    for name in names:
        try:
            images.resolve(_image_name(name))
        except Rejected:
            continue
        return []
    return [
        f"{source.parameter('image_path')}: found none of the first {len(names)} pictures that "
        f"{file.name} names, such as {names[0]!r}, in "
        f"{source.config.image_path or source.config.path!r}, expected the folder that these names "
        "begin in."
    ]


def _lines(content: bytes) -> list[str]:
    """The lines of a file with their ends; bytes that are no UTF-8 as single surrogates."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        content = as_utf8(content)
    text = content.decode("utf-8", "surrogateescape")
    if "\0" in text[:_MAX_HEAD]:
        raise Rejected(Reason.UNREADABLE_FILE, "found zero bytes, expected lines of text")
    # Lines end as CSV's do, not at every sign that Unicode calls a line end.
    return io.StringIO(text, newline="").readlines()


def _rows(
    source: Source, file: SourceFile, lines: list[str]
) -> Iterator[tuple[int, _Row | Rejected]]:
    """The rows behind the names of the columns, with the number of each.

    A row that cannot be read costs its first line; reading goes on at the next one.

    Raises:
        SourceParameterError: The columns are not there.
    """
    start = next((n for n, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise Rejected(Reason.EMPTY_FILE, "found no row")
    delimiter = max(_DELIMITERS, key=lambda sign: (lines[start].count(sign), sign == ","))
    names, place = _parse(lines, start, delimiter)
    if isinstance(names, Rejected):
        raise names
    names = [name.strip() for name in names]
    columns = [_column(source, file, names, which) for which in ("image_column", "text_column")]
    if missing := [text for text in columns if isinstance(text, str)]:
        raise SourceParameterError("\n".join(missing))
    image, caption = (column for column in columns if isinstance(column, int))
    number = 0
    while place < len(lines):
        if not lines[place].strip():
            place += 1
            continue
        fields, place = _parse(lines, place, delimiter)
        yield number, _row(number, names, fields, image, caption)
        number += 1


def _column(source: Source, file: SourceFile, names: list[str], which: str) -> int | str:
    """Where a column stands, or what is wrong with its name."""
    wanted = getattr(source.config, which)
    if names.count(wanted) == 1:
        return names.index(wanted)
    listed = ", ".join(repr(name[:40]) for name in names[:20])
    return (
        f"{source.parameter(which)}: found {wanted!r}, expected one of the columns that the first "
        f"row of {file.name} names: {listed}."
    )


def _parse(lines: list[str], place: int, delimiter: str) -> tuple[list[str] | Rejected, int]:
    """The fields of the row that begins in a line, and the line behind it."""
    taken = 0

    def feed() -> Iterator[str]:
        nonlocal taken
        for line in lines[place : place + _MAX_LINES]:
            taken += 1
            yield line

    try:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True)), place + taken
    except csv.Error as error:
        why = Rejected(Reason.MALFORMED_RECORD, f"{error}: found {lines[place].strip()[:80]!r}")
        return why, place + 1


def _row(
    number: int, names: list[str], fields: list[str] | Rejected, image: int, caption: int
) -> _Row | Rejected:
    if isinstance(fields, Rejected):
        return fields
    if len(fields) != len(names):
        found = f"found {len(fields)} fields in a row, expected {len(names)}"
        return Rejected(Reason.MALFORMED_RECORD, f"{found}; text that holds the sign between "
                        "fields stands in quotes")  # fmt: skip
    try:
        "".join(fields).encode("utf-8")
    except UnicodeEncodeError as error:
        return Rejected(Reason.INVALID_UTF8, f"found bytes that are no UTF-8 ({error.reason})")
    others = {
        name: text
        for place, (name, text) in enumerate(zip(names, fields, strict=True))
        if place not in (image, caption) and name and text
    }
    return _Row(number, fields[image].strip(), fields[caption].strip(), others)


def _image_name(name: str) -> ImageName:
    """A file by its name, or by its name without suffix."""
    is_whole = PurePosixPath(name).suffix[1:].lower() in IMAGE_SUFFIXES
    return ImageName(name, ImageCall.NAME if is_whole else ImageCall.STEM)


def _pictures(
    images: AnnotatedImages,
    source: Source,
    file: SourceFile,
    rows: Iterator[tuple[int, _Row | Rejected]],
) -> Iterator[Found]:
    """Pictures with all their captions, in the order of each one's first row."""
    pictures: dict[str, _Picture] = {}
    for number, row in rows:
        key = f"{file.key}/{number:08d}"
        if isinstance(row, Rejected):
            yield RejectedRecord(key, row)
        elif not row.image:
            yield RejectedRecord(key, Rejected(Reason.CAPTION_WITHOUT_IMAGE))
        elif not row.text:
            yield RejectedRecord(key, Rejected(Reason.IMAGE_WITHOUT_CAPTION))
        else:
            pictures.setdefault(row.image, _Picture(row)).references.append(row.text)
    for picture in pictures.values():
        row = picture.first
        image = annotated_image(images, _image_name(row.image))
        key, references = f"{file.key}/{row.number:08d}", tuple(picture.references)
        yield RawRecord(key, (Segment.of_image(0),), (image,), references, row.others)


READERS = {SourceFormat.IMAGE_CSV: Reader(read, problems)}
