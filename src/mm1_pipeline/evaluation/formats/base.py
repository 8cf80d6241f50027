"""What readers of benchmark files share: raw items, and rows that may be malformed."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_pipeline.annotations.json_files import as_utf8, parse_file, parse_list
from mm1_pipeline.config._base import is_data
from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.images import ImageSource
from mm1_pipeline.ground.rejects import Rejected

_ID_FIELDS = ("question_id", "questionId", "id", "image_id", "index", "qid")
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, slots=True)
class RawItem:
    """One thing a benchmark asks, as its files say it.

    Attributes:
        key: Unique within the task.
        images: In the order in which the question counts them.
        question: What is asked; None for captions.
        references: Captions, answers, or the letter of the right option.
        options: Texts of the options, A first.
        group: Items of one group are drawn and judged together; empty for an item alone.
        category: Split, kind or capability that scores are also given by.
        facts: What else the metric needs, such as the precision of a number.
        failure: Why it cannot be asked.
        is_asked: Whether it is an item of the benchmark; else an entry beside its items, such as an
            answer to no question, which is listed and not scored.
    """

    key: str
    images: tuple[ImageSource, ...] = ()
    question: str | None = None
    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None
    is_asked: bool = True


@dataclass(frozen=True, slots=True)
class FormatFiles:
    """Where the files of one benchmark lie.

    Attributes:
        paths: By role.
        subset: Part that is read.
        image_name: File name of an image whose number is known.
        hides_answers: Whether rows have no answers.
    """

    paths: Mapping[str, Path]
    subset: str = ""
    image_name: str = ""
    hides_answers: bool = False

    def image(self, name: str) -> Path:
        """Path of an image inside the folder `images`.

        Raises:
            ValueError: The name leads out of the folder.
        """
        return inside(self.paths["images"], name)


def inside(folder: Path, name: str) -> Path:
    """A path below a folder.

    Raises:
        ValueError: The name leads out of the folder.
    """
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except RuntimeError as error:  # How Python 3.11 calls links in a circle.
        raise ValueError(f"found the image name {name!r}, a link that leads to itself") from error
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"found the image name {name!r}, which leads out of its folder")
    if not is_data(posixpath.normpath(name)):
        raise ValueError(f"found the image name {name!r}, a file that is hidden or no data")
    return path


def data_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder in the order of their names, without what is hidden or no data."""
    found = sorted(folder.glob(pattern))
    return [path for path in found if is_data(path.relative_to(folder).as_posix())]


def refuse_no_file(path: Path) -> None:
    """Raises ValueError for what cannot be read as a file; to open a pipe would wait for ever."""
    if not path.is_file():
        raise ValueError(f"Found no file at {path}: it is missing, a link to nothing, or a pipe.")


def parse_rows(rows: Iterable[Any], parse: Callable[[Any], RawItem]) -> Iterator[RawItem]:
    """Parses each row; a malformed one becomes an item that says why it cannot be asked."""
    for number, row in enumerate(rows):
        try:
            yield parse(row)
        except _MALFORMED as error:
            yield RawItem(key=_key_of(row, number), failure=f"malformed: {_describe(error)}")


def parse_keyed(
    pairs: Iterable[tuple[Any, Any]], parse: Callable[[str, Any], RawItem]
) -> Iterator[RawItem]:
    """As `parse_rows`, for rows whose key stands beside them."""
    for key, row in pairs:
        try:
            yield parse(str(key), row)
        except _MALFORMED as error:
            yield RawItem(key=str(key), failure=f"malformed: {_describe(error)}")


def read_json(path: Path) -> Any:
    """Content of a JSON file; of JSON lines, the list of their rows. See `annotations.json_files`.

    Raises:
        ValueError: The file is missing or no JSON.
    """
    try:
        return parse_file(read_content(path))
    except Rejected as error:
        raise ValueError(f"Found no readable JSON at {path}: {error}.") from error


def read_json_lines(path: Path) -> list[Any]:
    """Rows of a file of JSON lines, or of one JSON list; benchmarks are published as either.

    A line that is no JSON stays as text and fails as an item.

    Raises:
        ValueError: The file is missing.
    """
    try:
        return parse_list(read_content(path))
    except Rejected as error:
        raise ValueError(f"Found no readable JSON lines at {path}: {error}.") from error


def read_text(path: Path) -> str:
    """Text of a file, with line feeds for Windows' line ends; it may be compressed by gzip.

    Raises:
        ValueError: The file is missing or not in UTF-8.
    """
    try:
        return as_utf8(read_content(path, "text")).decode("utf-8").replace("\r\n", "\n")
    except (Rejected, UnicodeDecodeError) as error:
        raise ValueError(f"Found no readable text at {path}: {error}.") from error


def read_table(path: Path, name: str) -> list[Any]:
    """The rows that a JSON file holds under a name; those of a list or JSON lines without one.

    Raises:
        ValueError: The file is missing, or holds no rows.
    """
    content = read_json(path)
    return content if isinstance(content, list) else listed(content, name, path)


def listed(content: Any, name: str, path: Path) -> list[Any]:
    """The list that a JSON file holds under a name.

    Raises:
        ValueError: It holds none.
    """
    found = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(found, list):
        raise ValueError(f"Found no list {name!r} in {path}; expected the official format.")
    return found


def read_content(path: Path, kind: str = "JSON") -> bytes:
    """Bytes of a file, unpacked where it is packed by gzip or zstd, whatever its name says.

    Raises:
        ValueError: It is missing, damaged, or swells too much.
    """
    refuse_no_file(path)
    try:
        with path.open("rb") as stream:
            return b"".join(decompression.read_chunks(stream, path.name.lower()))
    except (OSError, Rejected) as error:
        raise ValueError(f"Found no readable {kind} at {path}: {error}.") from error


def text_of(value: Any) -> str:
    """A text field; numbers and None are malformed.

    Raises:
        TypeError: It is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"found {type(value).__name__}, expected text")
    return value.strip()


def letter(index: int) -> str:
    """The letter of an option: A for 0."""
    return chr(ord("A") + index)


def _key_of(row: Any, number: int) -> str:
    if isinstance(row, Mapping):
        for name in _ID_FIELDS:
            if isinstance(row.get(name), str | int):
                return str(row[name])
    return f"entry_{number}"


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"found no field {error.args[0]!r}"
    return str(error) or type(error).__name__
