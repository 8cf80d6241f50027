"""Records of web archives, read across damage.

An archive holds records one behind the other: plain, or packed each as a gzip member or zstd frame
of its own (or, by other tools, all as one). A record that is damaged, or whose length is wrong,
costs itself: reading goes on at the next member, or at the next line that starts a record.

Source: WARC 1.0 and 1.1 (ISO 28500), whose older drafts (0.17, 0.18) differ in nothing read here;
zstd and its dictionary as the IIPC's proposal has them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from mm1_pipeline.corpus.decompression import BrokenFrame, PackedFile, Unpacker
from mm1_pipeline.ground.rejects import Reason, Rejected

_MAX_HEADER_BYTES = 1_000_000
_MAX_DAMAGES = 10_000
"""Damaged places of one archive above which its rest is not read."""
_MAX_READ_AGAIN = 10
"""Times an archive's length that may be read twice to find records inside of damaged ones."""
_VERSION = re.compile(rb"WARC/[0-9]\.[0-9]+[ \t]*\r?\n")
_START = re.compile(rb"WARC/[0-9]\.[0-9]+[ \t]*\r?\n[A-Za-z][A-Za-z-]*[ \t]*:")
_LONGEST_START = 200
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_NEWLINES = re.compile(rb"[\r\n]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_CHECKPOINT_BYTES = 8_000_000
_MAX_CHECKPOINTS = 128
_MAX_SKIPPED = 256_000_000

Headers = dict[str, list[str]]
"""Values of every header, by its name in lower case, in their order."""


@dataclass(frozen=True, slots=True)
class WarcRecord:
    """One record.

    Attributes:
        position: where in the file it starts, or the member that it is in.
        skip: bytes of that member's text before it.
        headers: its own, not those of what it archives.
        content: no more than was asked for.
        length: of the whole content, in bytes.
    """

    position: int
    skip: int
    headers: Headers
    content: bytes
    length: int

    @property
    def kind(self) -> str:
        """`response`, `revisit`, `request`, ... in lower case."""
        return self.header("warc-type").lower()

    @property
    def url(self) -> str:
        """The address that was asked for."""
        return self.header("warc-target-uri").strip("<>")

    def header(self, name: str) -> str:
        """The first header of that name, in lower case, or nothing."""
        return self.headers.get(name, [""])[0]


class Archive:
    """One web archive.

    Args:
        stream: the file, open for reading bytes, able to seek.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._file = PackedFile(stream)
        self._checkpoints: dict[int, _Checkpoints] = {}

    def records(self, max_bytes: int) -> Iterator[WarcRecord | Rejected]:
        """All records in their order, and what is wrong where there is none.

        Args:
            max_bytes: of a record's content that are kept; the rest is passed.
        """
        reader = _Reader(self._file)
        allowed, found_any, member = _MAX_DAMAGES, False, 0
        damage: Rejected | None = None
        while True:
            try:
                if damage is not None:
                    is_end = not reader.leave(damage) or not reader.seek_start()
                    yield damage if found_any or not is_end else _as_whole(damage)
                    if is_end:
                        return
                    damage = None
                record = reader.next_record(max_bytes)
            except Rejected as found:
                broken = found.position if isinstance(found, BrokenFrame) else None
                if damage is not None and broken != member:
                    yield damage  # unless it lies in the member that is found broken now
                damage, member = found, reader.member if broken is None else broken
                if not allowed:
                    limit = f"found over {_MAX_DAMAGES} damaged places; the rest is not read"
                    yield Rejected(Reason.UNREADABLE_FILE, limit)
                    return
                allowed -= 1
                continue
            if record is None:
                return
            found_any = True
            yield record

    def record_at(self, position: int, skip: int, max_bytes: int) -> WarcRecord:
        """One record.

        Args:
            position: as the record told it.
            skip: likewise.
            max_bytes: of its content that are kept.

        Raises:
            Rejected: it is damaged, or lies too deep in a member of many records.
        """
        points = self._checkpoints.get(position) or _Checkpoints()
        reader = _Reader(self._file, position, points.before(skip))
        reader.skip_to(skip, points)
        if points.places:
            self._checkpoints[position] = points
        record = reader.next_record(max_bytes)
        if record is None:
            raise Rejected(Reason.TRUNCATED_FILE, f"byte {position}: found the end of the archive")
        return record


def _as_whole(damage: Rejected) -> Rejected:
    """Damage that leaves nothing of a file: it is no archive."""
    is_damage = damage.reason == Reason.DAMAGED_MEMBER
    return Rejected(Reason.UNREADABLE_FILE, damage.detail) if is_damage else damage


@dataclass(slots=True)
class _Checkpoints:
    """States of unpacking one member of many records, by the bytes of text before them."""

    places: list[int] = field(default_factory=list)
    states: list[Unpacker] = field(default_factory=list)
    distance: int = _CHECKPOINT_BYTES

    def before(self, place: int) -> tuple[int, Unpacker] | None:
        number = bisect_right(self.places, place) - 1
        return None if number < 0 else (self.places[number], self.states[number])

    def note(self, place: int, unpacker: Unpacker) -> None:
        last = self.places[-1] if self.places else 0
        if place - last < self.distance or (state := unpacker.copy()) is None:
            return
        self.places.append(place)
        self.states.append(state)
        if len(self.places) > _MAX_CHECKPOINTS:
            self.places, self.states = self.places[1::2], self.states[1::2]
            self.distance *= 2


class _Reader:
    """Reads records from one place on."""

    def __init__(
        self, file: PackedFile, position: int = 0, known: tuple[int, Unpacker] | None = None
    ) -> None:
        self._file = file
        self._read_again = 0
        self._start(position)
        if known is not None:
            self._offset, state = known
            self._unpacker = state.copy() or state
            self._unpacker.go_on()

    @property
    def member(self) -> int:
        """Where the member starts in which the record starts that is being read."""
        return self._begin[1]

    def _start(self, position: int) -> None:
        self._unpacker = self._file.unpack(position)
        self._text = bytearray()
        self._offset = 0  # of the text at hand, in all text since the start
        self._frames = [(0, position)]
        """Offsets in the text at which frames start, and where in the file these are."""
        self._whole_to = -1
        """Offset up to which frames were unpacked to their ends, and so passed their checks."""
        self._begin = (0, position)
        """Where the record starts that is being read: its offset, and its frame."""

    def _fill(self) -> bool:
        """Reads on; False at the end of the archive."""
        piece = self._unpacker.read()
        if piece is None:
            return False
        end = self._offset + len(self._text)
        if not piece:
            self._whole_to = end
        elif self._file.is_packed and self._unpacker.frame_position != self._frames[-1][1]:
            self._frames.append((end, self._unpacker.frame_position))
        self._text += piece
        return True

    def _drop(self, length: int) -> None:
        del self._text[:length]
        self._offset += length

    def next_record(self, max_bytes: int) -> WarcRecord | None:
        """The record that starts here; None at the end of the archive."""
        while True:
            found = _NEWLINES.match(self._text)
            self._drop(found.end() if found else 0)
            if self._text:
                break
            if not self._fill():
                return None
        while len(self._frames) > 1 and self._frames[1][0] <= self._offset:
            del self._frames[0]
        frame_offset, frame = self._frames[0]
        self._begin = (self._offset, frame)
        place = frame if self._file.is_packed else frame + self._offset
        skip = self._offset - frame_offset if self._file.is_packed else 0
        headers, length = self._read_header()
        content = self._read_content(length, max_bytes)
        self._read_end()
        return WarcRecord(place, skip, headers, content, length)

    def _read_header(self) -> tuple[Headers, int]:
        searched = 0
        while (end := _HEADER_END.search(self._text, searched)) is None:
            searched = max(0, len(self._text) - 3)
            if not b"WARC/".startswith(self._text[:5]) or len(self._text) > _MAX_HEADER_BYTES:
                break
            if not self._fill():
                raise self._wrong("ends inside of a record's header", Reason.TRUNCATED_FILE)
        if end is None or end.end() > _MAX_HEADER_BYTES or not _VERSION.match(self._text):
            raise self._wrong(f"has {bytes(self._text[:8]).hex(' ')} where a record should start")
        version = _VERSION.match(self._text)
        assert version is not None, "it was matched above"
        headers = read_headers(bytes(self._text[version.end() : end.start()]))
        length = headers.get("content-length", [""])[0]
        if not (length.isascii() and length.isdecimal() and len(length) < 19):
            raise self._wrong(f"has a record with the Content-Length {length[:30]!r}")
        self._drop(end.end())
        return headers, int(length)

    def _read_content(self, length: int, max_bytes: int) -> bytes:
        content, left = bytearray(), length
        while left:
            if not self._text and not self._fill():
                raise self._wrong("ends inside of a record", Reason.TRUNCATED_FILE)
            is_new_frame = self._frames[-1][0] == self._offset != self._begin[0]
            if is_new_frame and _START.match(self._text):
                raise self._wrong("has a record that is shorter than its Content-Length")
            taken = min(left, len(self._text))
            if len(content) < max_bytes:
                content += memoryview(self._text)[: min(taken, max_bytes - len(content))]
            self._drop(taken)
            left -= taken
        return bytes(content)

    def _read_end(self) -> None:
        """Makes sure that a record is followed by another one, or by the end.

        Only then are its length and, where it is packed alone, its checksum known to be right.
        """
        while True:
            newlines = _NEWLINES.match(self._text)
            place = newlines.end() if newlines else 0
            follows = bytes(self._text[place : place + 5])
            if self._whole_to == self._offset + len(self._text) or len(follows) == 5:
                break
            if not self._fill():
                break
        # In a plain file the next record may be damaged; a member would not pass its check.
        is_ended = self._text.startswith((b"\r\n\r\n", b"\n\n")) and not self._file.is_packed
        if not is_ended and not b"WARC/".startswith(follows):
            raise self._wrong("has a record that goes on behind its Content-Length")

    def seek_start(self) -> bool:
        """Goes to where the next record seems to start; False if there is none."""
        while True:
            found = _START.search(self._text)
            if found is not None:
                self._drop(found.start())
                return True
            self._drop(max(0, len(self._text) - _LONGEST_START))
            if not self._fill():
                return False

    def leave(self, damage: Rejected) -> bool:
        """Goes on behind damage, to where `seek_start` may search; False at the end."""
        offset, frame = self._begin
        if isinstance(damage, BrokenFrame):
            position = self._file.find_frame(damage.position + 1)
            if position is not None:
                self._start(position)
            return position is not None
        behind = [position for start, position in self._frames if start > offset]
        if self._file.is_packed and behind:
            self._start(behind[0])
        elif not self._file.is_packed and self._offset > offset:
            # The length was wrong: other records may lie in what was taken for this one.
            again = self._offset + len(self._text) - offset
            self._read_again += again
            total = self._offset + frame
            if self._read_again <= _MAX_READ_AGAIN * (total + _MAX_HEADER_BYTES):
                self._start(frame + offset + 1)
        else:
            self._drop(1)
        return True

    def skip_to(self, skip: int, points: _Checkpoints) -> None:
        """Passes text, and notes where one can go on later."""
        if skip - self._offset > _MAX_SKIPPED:
            found = f"found a record {skip:,} bytes deep in a member; pack records one by one"
            raise Rejected(Reason.UNREADABLE_FILE, found)
        while self._offset + len(self._text) <= skip:
            if not self._fill():
                return
            dropped = min(len(self._text), skip - self._offset)
            self._drop(dropped)
            if not self._text:
                points.note(self._offset, self._unpacker)
        self._drop(skip - self._offset)

    def _wrong(self, found: str, reason: Reason = Reason.DAMAGED_MEMBER) -> Rejected:
        offset, frame = self._begin
        place = frame if self._file.is_packed else frame + offset
        return Rejected(reason, f"byte {place}: the archive {found}")


def read_headers(block: bytes) -> Headers:
    """Headers of a record, or of an archived message.

    Lines may end in bare newlines, and go on on the next one where it starts with a blank. Bytes
    that are no UTF-8 are escaped as in a URL.
    """
    text = block.decode("utf-8", "surrogateescape")
    text = _ESCAPED_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)
    headers: Headers = {}
    values: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        if line[:1] in (" ", "\t") and values:
            values[-1] = f"{values[-1]} {line.strip()}".strip()
            continue
        name, separator, value = line.partition(":")
        if separator:
            values = headers.setdefault(name.strip().lower(), [])
            values.append(value.strip())
    return headers
