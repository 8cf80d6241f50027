"""Whole JSON files as they are published: one value or lines of values, in any of JSON's encodings.

An object in which a name occurs twice keeps both values: questions by number are such objects, and
of two questions of one number the second would take the first one's place unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mm1_pipeline.ground.rejects import Reason, Rejected


class RepeatingObject(dict[str, Any]):
    """A JSON object in which names occur twice; as a dict it has the last value of each."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def all_pairs(value: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Names and values of an object, with those that occur twice."""
    return value.pairs if isinstance(value, RepeatingObject) else value.items()


def parse(text: bytes, *, keep_repeated: bool = False) -> Any | Rejected:
    """The value of one JSON text, or why it has none.

    Args:
        text: in UTF-8, with or without byte order mark.
        keep_repeated: whether objects in which names occur twice become RepeatingObjects.
    """
    hook = _to_object if keep_repeated else None
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        return Rejected(Reason.INVALID_UTF8, str(error))
    except (ValueError, RecursionError) as error:
        return Rejected(Reason.INVALID_JSON, f"{type(error).__name__}: {error}")


def parse_file(content: bytes) -> Any:
    """The value of a JSON file; of JSON lines, the list of their rows.

    Args:
        content: unpacked; in UTF-8, UTF-16 or UTF-32, with or without byte order mark.

    Returns:
        The value. Objects that repeat names are RepeatingObjects.

    Raises:
        Rejected: it is neither JSON nor JSON lines.
    """
    content = as_utf8(content)
    value = parse(content, keep_repeated=True)
    if not isinstance(value, Rejected):
        return value
    rows = lines(content)
    # A file of lines has several, and the first of them is a value by itself.
    if len(rows) > 1 and not isinstance(rows[0], str):
        return rows
    raise value


def parse_list(content: bytes) -> list[Any]:
    """Rows of a file of JSON lines, or of one JSON list; data sets are published as either.

    Raises:
        Rejected: it is in no encoding of JSON.
    """
    content = as_utf8(content)
    if content.lstrip(b" \t\r\n")[:1] == b"[":
        value = parse(content, keep_repeated=True)
        if isinstance(value, list):
            return value  # else lines that are lists each
    return lines(content)


def as_utf8(content: bytes) -> bytes:
    """The content in UTF-8 without byte order mark, from any encoding that JSON may have.

    Raises:
        Rejected: it is not in the encoding that its first bytes tell.
    """
    encoding = json.detect_encoding(content)
    if encoding not in ("utf-8", "utf-8-sig"):
        try:
            content = content.decode(encoding).encode("utf-8")
        except UnicodeError as error:
            raise Rejected(Reason.INVALID_UTF8, str(error)) from None
    return content.removeprefix(b"\xef\xbb\xbf")


def lines(content: bytes) -> list[Any]:
    """Values of JSON lines; a line that is no JSON stays as text, and is then no entry.

    A line ends at a line feed alone: texts inside JSON hold other signs that count as line ends
    elsewhere.
    """
    values = []
    for line in content.split(b"\n"):
        if line.strip():
            value = parse(line, keep_repeated=True)
            is_bad = isinstance(value, Rejected)
            values.append(line.decode("utf-8", errors="replace").strip() if is_bad else value)
    return values


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else RepeatingObject(pairs)
