"""What the footer of a Parquet file says of its row groups, read without Arrow.

Arrow's own view of a column's part of a row group ends the process where its statistics do not fit
(an exception of C++ that its Python wrapper does not catch), so it is never asked for with files
from outside. Source: Apache Parquet, parquet.thrift; Apache Thrift, compact protocol.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from mm1_pipeline.ground.rejects import Reason, Rejected

_MAGIC = b"PAR1"
_MAX_DEPTH = 32
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT, _UUID = (9, 10), 11, 12, 13
_ROW_GROUPS = 4
_COLUMNS, _NUM_ROWS = 1, 3
_METADATA, _PATH, _NUM_VALUES, _UNPACKED, _PACKED = 3, 3, 5, 6, 7


@dataclass(frozen=True)
class ColumnChunk:
    """A leaf column's part of a row group."""

    column: str
    """The top-level column that it belongs to."""
    num_values: int
    packed: int
    """Bytes in the file."""
    unpacked: int
    """Bytes."""


@dataclass(frozen=True)
class RowGroup:
    """A row group, as the footer has it; nothing of it need be true."""

    num_rows: int
    chunks: tuple[ColumnChunk, ...]


def read_row_groups(stream: BinaryIO) -> list[RowGroup]:
    """Reads the footer.

    Args:
        stream: a seekable Parquet file.

    Raises:
        Rejected: there is no footer that can be read.
    """
    try:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - 8))
        size, magic = struct.unpack("<I4s", stream.read(8))
        if magic != _MAGIC or size > end - 8:
            raise ValueError(f"found {magic!r} and a length of {size} at its end")
        stream.seek(end - 8 - size)
        content = _Compact(stream.read(size)).read_struct()
        groups = [_row_group(group) for group in content.get(_ROW_GROUPS, [])]
    except (ValueError, IndexError, TypeError, AttributeError, KeyError, struct.error) as error:
        found = f"found a footer that cannot be read ({type(error).__name__}: {error})"
        raise Rejected(Reason.UNREADABLE_FILE, found) from error
    stream.seek(0)
    return groups


def _row_group(group: dict[int, Any]) -> RowGroup:
    found = [chunk[_METADATA] for chunk in group[_COLUMNS]]
    chunks = tuple(
        ColumnChunk(
            about[_PATH][0].decode("utf-8", errors="replace"),
            about[_NUM_VALUES],
            about[_PACKED],
            about[_UNPACKED],
        )
        for about in found
    )
    return RowGroup(group[_NUM_ROWS], chunks)


class _Compact:
    """Thrift's compact protocol; structs become values by the number of their field."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            found[number] = kind == 1 if kind in _BOOLEANS else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._number())
        if kind == _STRUCT:
            return self.read_struct(depth + 1)
        if kind in _LISTS:
            head = self._byte()
            size, kind = head >> 4, head & 15
            size = self._number() if size == 15 else size
            return [self._item(kind, depth + 1) for _ in range(self._checked(size))]
        if kind == _MAP:
            size = self._checked(self._number())
            kinds = self._byte() if size else 0
            return [
                (self._item(kinds >> 4, depth + 1), self._item(kinds & 15, depth + 1))
                for _ in range(size)
            ]
        if kind == _BYTE:
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _UUID:
            return self._bytes(16)
        raise ValueError(f"no type has the number {kind}")

    def _item(self, kind: int, depth: int) -> Any:
        return self._byte() == 1 if kind in _BOOLEANS else self._value(kind, depth)

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _number(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number has more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _checked(self, size: int) -> int:
        """A number of items or bytes, if as many can follow."""
        if size > len(self._data) - self._place:
            raise ValueError(f"{size} items or bytes do not fit")
        return size

    def _bytes(self, size: int) -> bytes:
        start = self._place
        self._place += self._checked(size)
        return self._data[start : self._place]
