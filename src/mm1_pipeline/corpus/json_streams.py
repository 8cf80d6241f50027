"""JSON that does not fit into memory, one line or one array element at a time."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mm1_pipeline.annotations.json_files import parse
from mm1_pipeline.ground.rejects import Reason, Rejected

_BLANKS = " \t\r\n"
_LONGEST_SCALAR = 64


def iterate_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, Any | Rejected]]:
    """Parses JSON lines; a bad line costs itself only.

    Args:
        chunks: the file in pieces.
        max_bytes: length above which a line is refused without being held in memory.

    Yields:
        Number of the line, from 1, and its value or why it has none. Blank lines are no records.
    """
    for number, line in enumerate(_split_lines(chunks, max_bytes), start=1):
        if line is None:
            yield number, Rejected(Reason.LINE_TOO_LONG, f"found more than {max_bytes} bytes")
        elif line.strip():
            yield number, parse(line)


def iterate_array(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Parses the elements of one large JSON array as they come.

    Args:
        chunks: the file in pieces.
        max_bytes: length above which one element is refused.

    Yields:
        Number of the element, from 0, and its value.

    Raises:
        Rejected: the rest of the file cannot be read: damage inside an array hides where the
            next element starts.
    """
    buffer = _Buffer(chunks, max_bytes)
    if buffer.take_character() != "[":
        raise Rejected(Reason.INVALID_JSON, "expected an array: a text that starts with '['")
    if buffer.next_character() == "]":
        return
    for number in itertools.count():
        yield number, buffer.take_element()
        separator = buffer.take_character()
        if separator == "]":
            return
        if separator != ",":
            raise Rejected(Reason.INVALID_JSON, f"found {separator!r} after element {number}")


class _Buffer:
    """The part of a JSON array that is being looked at."""

    def __init__(self, chunks: Iterable[bytes], max_bytes: int) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
        self._json = json.JSONDecoder()
        self._max_bytes = max_bytes
        self._text = ""
        self._start = 0
        self._ended = False

    def next_character(self) -> str:
        """The next character that is not a blank, without taking it."""
        while True:
            self._start = self._skip_blanks(self._start)
            if self._start < len(self._text):
                return self._text[self._start]
            if not self._read_more():
                raise Rejected(Reason.TRUNCATED_FILE, "found an array that ends in the middle")

    def take_character(self) -> str:
        """The next character that is not a blank."""
        character = self.next_character()
        self._start += 1
        return character

    def take_element(self) -> Any:
        """The next element; a number may go on until the comma or bracket behind it is seen."""
        self.next_character()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._start)
                is_closed = self._text[end - 1] in '}]"'
                end = self._skip_blanks(end)
                follower = self._text[end : end + 1]
                if follower in (",", "]") or (is_closed and not follower):
                    self._start = end
                    return value
                raise json.JSONDecodeError("Expecting ',' or ']'", self._text, end)
            except json.JSONDecodeError as error:
                self._extend_or_give_up(error)
            except (ValueError, RecursionError) as error:
                raise Rejected(Reason.INVALID_JSON, str(error)) from None

    def _skip_blanks(self, position: int) -> int:
        while position < len(self._text) and self._text[position] in _BLANKS:
            position += 1
        return position

    def _extend_or_give_up(self, error: json.JSONDecodeError) -> None:
        """Reads on when the element may only be incomplete.

        A cut number or literal is reported a few characters before the end, a cut string at its
        start; any other error is one, whatever follows.
        """
        is_string = error.msg.startswith("Unterminated string")
        if not is_string and error.pos <= len(self._text) - _LONGEST_SCALAR:
            raise Rejected(Reason.INVALID_JSON, str(error)) from None
        is_at_end = error.pos >= len(self._text.rstrip())
        length = len(self._text) - self._start
        if length > self._max_bytes:
            raise Rejected(Reason.LINE_TOO_LONG, f"found an element over {self._max_bytes} bytes")
        # Doubling keeps the repeated attempts on a long element linear in its length.
        while len(self._text) - self._start < 2 * length and self._read_more():
            pass
        if len(self._text) - self._start == length:
            is_whole = self._text.rstrip().endswith("]")
            damaged = is_whole and not is_string and not is_at_end
            reason = Reason.INVALID_JSON if damaged else Reason.TRUNCATED_FILE
            raise Rejected(reason, str(error)) from None

    def _read_more(self) -> bool:
        if self._ended:
            return False
        chunk = next(self._chunks, b"")
        try:
            text = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise Rejected(Reason.INVALID_UTF8, str(error)) from None
        self._ended = not chunk
        self._text = self._text[self._start :] + text
        self._start = 0
        return bool(chunk)


def _split_lines(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes | None]:
    """Cuts a stream at newlines; a line that is too long comes as None and is not held."""
    pending, too_long = b"", False
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            whole = pending + line
            yield None if too_long or len(whole) > max_bytes else whole
            pending, too_long = b"", False
        pending += rest
        if len(pending) > max_bytes:
            pending, too_long = b"", True
    if pending or too_long:
        yield None if too_long else pending
