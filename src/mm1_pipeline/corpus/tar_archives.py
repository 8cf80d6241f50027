"""Lists what lies in tar archives that nobody has checked, in bounded memory and linear time.

Python's tarfile holds whole long names and pax headers in memory, follows chains of them by
recursion, and takes the first block that is no header for the end. Here every header is read by
itself: a damaged one costs what it describes, archives that were written behind each other are
read on, and where nothing but a later header can be trusted, it is looked for.

Source: POSIX.1-2001 (ustar, pax) and GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import BinaryIO

from mm1_pipeline.ground.rejects import Reason, Rejected

_BLOCK = 512
_END_MARK = 2 * _BLOCK
_CHUNK = 1 << 20
_MAX_EXTENSION = 1 << 20
"""Bytes of a header of names and attributes above which it is skipped; paths have 4,096."""
_MAX_SIZE = 1 << 63
_MAX_DIGITS = 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_GZIP = b"\x1f\x8b"
_EXTENSIONS = (b"L", b"K", b"x", b"X", b"g")
"""Types of headers that say something about the member behind them, or (g) about all."""
_BARE = (b"1", b"2", b"3", b"4", b"6")
"""Types of members that have no content, whatever their size says."""
_PAX_FIELD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")


class MemberType(Enum):
    """What a member is."""

    FILE = auto()
    DIRECTORY = auto()
    LABEL = auto()
    """The name of a tape."""
    SPECIAL = auto()
    """A link, a device, a file with holes, or a part of one."""


_TYPES = {
    b"0": MemberType.FILE,
    b"\0": MemberType.FILE,
    b"7": MemberType.FILE,
    b"5": MemberType.DIRECTORY,
    b"V": MemberType.LABEL,
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive."""

    name: str
    """Bytes that are not UTF-8 are single surrogates."""
    type: MemberType
    offset: int
    """Of its content, in bytes."""
    size: int
    """Of its content, in bytes."""
    why: Rejected | None = None
    """Why its name or content cannot be had."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A place of an archive at which nobody can tell what was there."""

    why: Rejected
    member: Member | None = None
    """The one whose content is damaged with it."""
    is_after_end: bool = False
    """Whether the archive's end mark stands before it, so that no member can have lost a part."""
    is_last: bool = False
    """Whether nothing behind it can be read."""


@dataclass(slots=True)
class _Attributes:
    """What extension headers say about the member behind them."""

    name: bytes | None = None
    size: int | None = None
    has_holes: bool = False
    why: Rejected | None = None


def list_members(stream: BinaryIO, max_members: int) -> Iterator[Member | Damage]:
    """Reads the headers of an archive from front to end, and no content.

    Args:
        stream: the archive; must be able to seek.
        max_members: headers above which the rest is not read.
    """
    return _Listing(stream, max_members).run()


class _Listing:
    """One walk over the headers of an archive."""

    def __init__(self, stream: BinaryIO, max_members: int) -> None:
        self._stream = stream
        self._left = self._max_members = max_members
        self._end = stream.seek(0, io.SEEK_END)
        self._position: int | None = 0
        """Where the next header should be; None behind the last one."""
        self._behind: Member | None = None
        """The member that ends at the position."""
        self._attributes: _Attributes | None = None

    def run(self) -> Iterator[Member | Damage]:
        while self._position is not None:
            start = self._skip_zeros(self._position)
            if self._attributes is not None and start != self._position:
                why = f"found a header of a name, and no member, at byte {self._position}"
                yield Damage(Rejected(Reason.UNREADABLE_FILE, why), is_after_end=True)
                self._attributes = None
            if start is None:
                yield from self._finish(self._position)
                return
            if self._left < 1:
                why = f"found more than {self._max_members} members"
                yield Damage(Rejected(Reason.TOO_MANY_MEMBERS, why), is_last=True)
                return
            self._left -= 1
            is_after_end = start > self._position
            self._behind = None if is_after_end else self._behind
            block = self._read(start, _BLOCK)
            if _is_header(block):
                yield from self._read_header(start, block)
            else:
                yield self._find_next(start, len(block), is_after_end=is_after_end)

    def _finish(self, position: int) -> Iterator[Damage]:
        zeros = self._end - position
        if zeros < _END_MARK:
            why = Rejected(Reason.TRUNCATED_FILE, f"found no end mark at byte {position}")
            yield Damage(why, is_after_end=zeros >= _BLOCK, is_last=True)

    def _read_header(self, start: int, block: bytes) -> Iterator[Member | Damage]:
        kind, content = block[156:157], start + _BLOCK
        attributes, self._attributes = self._attributes or _Attributes(), None
        size = _number(block[124:136])
        if kind in _EXTENSIONS:
            if size is not None and content + size <= self._end:
                self._position, self._behind = content + _padded(size), None
                self._attributes = attributes
                self._read_extension(kind, content, size, attributes)
                return
            member = None
        else:
            size = size if attributes.size is None else attributes.size
            member = _to_member(block, content, size or 0, attributes)
            if member.type in (MemberType.DIRECTORY, MemberType.LABEL) or kind in _BARE:
                size = 0
            if kind == b"S":
                content = self._skip_sparse_maps(block, content)
            if size is not None and content + size <= self._end:
                self._position, self._behind = content + _padded(size), member
                yield member
                return
        yield from self._refuse_size(start, content, size, member)

    def _refuse_size(
        self, start: int, content: int, size: int | None, member: Member | None
    ) -> Iterator[Member | Damage]:
        """A header whose content cannot be there: the archive is cut, or the size is a lie."""
        self._position, self._behind = self._find_header(start + _BLOCK), None
        left = max(0, self._end - content)
        found = "no number" if size is None else f"{size} bytes"
        found = f"found {found} as the size of a member at byte {start}, and {left} bytes are left"
        is_cut = self._position is None and size is not None and size < _MAX_SIZE
        why = Rejected(Reason.TRUNCATED_FILE if is_cut else Reason.UNREADABLE_FILE, found)
        lost = None if member is None else replace(member, size=0, why=why)
        if lost is not None and self._position is not None:
            yield lost
        else:
            yield Damage(why, lost, is_last=self._position is None)

    def _find_next(self, start: int, length: int, *, is_after_end: bool) -> Damage:
        """Something that is no header: the next one is looked for."""
        behind, self._behind, self._attributes = self._behind, None, None
        self._position = self._find_header(start + 1)
        is_cut = self._position is None and length < _BLOCK and not is_after_end and start > 0
        reason = Reason.TRUNCATED_FILE if is_cut else Reason.UNREADABLE_FILE
        why = Rejected(reason, f"found no member at byte {start}")
        if start == 0 and self._read(0, 2) == _GZIP:
            why = Rejected(reason, "found a packed file, expected a plain tar: unpack it (gunzip)")
        # Behind a content there are only zeros, or its size is not the one that the header says.
        padding = b"" if behind is None else self._read(behind.offset + behind.size, _BLOCK)
        is_lie = behind is not None and padding[: -behind.size % _BLOCK].strip(b"\0")
        return Damage(why, behind if is_lie else None, is_after_end, self._position is None)

    def _read_extension(
        self, kind: bytes, content: int, size: int, attributes: _Attributes
    ) -> None:
        """Takes what matters of a header about the next one; its other attributes are skipped."""
        if kind in (b"K", b"g"):  # where a link leads; attributes of all members
            return
        if size > _MAX_EXTENSION:
            found = f"found a header of {size} bytes about a member, allowed {_MAX_EXTENSION}"
            attributes.why = Rejected(Reason.MEMBER_TOO_LARGE, found)
            return
        data = self._read(content, size)
        if kind == b"L":
            attributes.name = data.split(b"\0", 1)[0]
            return
        fields = _pax_fields(data)
        given = b"" if fields is None else fields.get(b"size", b"0")
        if fields is None or not given.isdigit() or len(given) > _MAX_DIGITS:
            found = f"found a pax header at byte {content - _BLOCK} that cannot be read"
            attributes.why = Rejected(Reason.UNREADABLE_FILE, found)
            return
        attributes.name = fields.get(b"path", attributes.name)
        attributes.size = int(given) if b"size" in fields else attributes.size
        attributes.has_holes |= any(name.startswith(b"GNU.sparse.") for name in fields)

    def _skip_sparse_maps(self, block: bytes, content: int) -> int:
        """Where the content of a file with holes starts; the maps of long ones go on before it."""
        goes_on = block[482:483]
        while goes_on not in (b"", b"\0"):
            goes_on = self._read(content + 504, 1)
            content += _BLOCK
        return content

    def _skip_zeros(self, position: int) -> int | None:
        """The first block from a position on that is not empty; None where all are."""
        start = position
        while chunk := self._read(start, _CHUNK if start > position else _BLOCK):
            rest = chunk.lstrip(b"\0")
            if rest:
                return start + (len(chunk) - len(rest)) // _BLOCK * _BLOCK
            start += len(chunk)
        return None

    def _find_header(self, position: int) -> int | None:
        """The next place at which a header lies, at any byte: lost ones shift all behind them."""
        start, kept = position, b""
        while chunk := self._read(start + len(kept), _CHUNK):
            window = kept + chunk
            found = window.find(_MAGIC, _MAGIC_AT)
            while found >= 0:
                place = found - _MAGIC_AT
                if _is_header(self._block_of(window, place, start)):
                    return start + place
                found = window.find(_MAGIC, found + 1)
            kept = window[-(_BLOCK - 1) :]
            start += len(window) - len(kept)
        return None

    def _block_of(self, window: bytes, place: int, start: int) -> bytes:
        block = window[place : place + _BLOCK]
        return block if len(block) == _BLOCK else self._read(start + place, _BLOCK)

    def _read(self, position: int, size: int) -> bytes:
        self._stream.seek(position)
        return self._stream.read(size)


def _is_header(block: bytes) -> bool:
    """Whether a block's checksum is right; some old programs add its bytes up with signs."""
    stored = _number(block[148:156])
    if len(block) < _BLOCK or stored is None:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    return stored in (total, total - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes) -> int | None:
    """The value of a numeric field, in octal digits or (GNU) binary; None where it has none."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _to_member(block: bytes, content: int, size: int, attributes: _Attributes) -> Member:
    name = attributes.name
    if name is None:
        name = block[:100].split(b"\0", 1)[0]
        prefix = block[345:500].split(b"\0", 1)[0]
        if prefix and block[257:263] == b"ustar\0":  # GNU keeps times there
            name = prefix + b"/" + name
    kind = _TYPES.get(block[156:157], MemberType.SPECIAL)
    if kind == MemberType.FILE and name.endswith(b"/"):
        kind = MemberType.DIRECTORY
    if kind == MemberType.FILE and attributes.has_holes:
        kind = MemberType.SPECIAL
    text = name.decode("utf-8", "surrogateescape")
    return Member(text, kind, content, size, attributes.why)


def _pax_fields(data: bytes) -> dict[bytes, bytes] | None:
    """The fields of a pax header; None where a length is wrong."""
    fields: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position]:
        start = _PAX_FIELD.match(data, position)
        end = position + int(start[1]) if start else 0
        if start is None or not start.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            return None
        fields[start[2]] = data[start.end() : end - 1]
        position = end
    return fields


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
