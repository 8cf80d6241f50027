"""Compressed streams in bounded memory that notice when they end too early, or swell too much.

A file is packed as its first bytes say, whatever its name says: in gzip members, in zstd frames,
or not at all. Members and frames stand alone, so that damage to one leaves the others.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import brotli
import zstandard

from mm1_pipeline.ground.rejects import Reason, Rejected

_CHUNK = 1 << 20
_READ = 1 << 14
_FED = 1 << 10
"""Bytes decompressed at once: a hostile zstd stream swells 33,000 times, to 34 MB; and what comes
out with an error is lost."""
_MAX_WINDOW = 1 << 27
"""Memory that a zstd or brotli stream may ask for."""
_MAX_EXPANSION = 200
"""Text of people packs 3 to 30 times, deflate's zeros 1,030 times and zstd's 33,000. Our choice."""
_FREE_BYTES = 256_000_000
"""What a frame may swell to however small it is."""
_MAX_DICTIONARY = 16_000_000

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
_DICTIONARY = b"\x5d\x2a\x4d\x18"
_FRAME = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]|\x28\xb5\x2f\xfd", re.DOTALL)
_TRIED = 4_096
_ERRORS = (zlib.error, zstandard.ZstdError, brotli.error)


class BrokenFrame(Rejected):
    """A gzip member or zstd frame that cannot be unpacked to its end.

    Args:
        reason: the kind of damage.
        position: where in the file it starts.
        detail: what was found.
    """

    def __init__(self, reason: Reason, position: int, detail: str) -> None:
        super().__init__(reason, f"byte {position}: {detail}")
        self.position = position


class PackedFile:
    """A file of which any frame can be unpacked.

    Args:
        stream: the file, open for reading bytes, able to seek.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        stream.seek(0)
        head = stream.read(_READ)
        self.is_packed = head.startswith((_GZIP, _ZSTD)) or _SKIPPABLE.match(head) is not None
        self._signature = _signature(head) if head.startswith(_GZIP) else None
        self._dictionary: zstandard.ZstdCompressionDict | None = None
        if head.startswith(_DICTIONARY):
            size = int.from_bytes(head[4:8], "little")
            if size <= _MAX_DICTIONARY:
                stream.seek(8)
                self._dictionary = _read_dictionary(stream.read(size))

    def unpack(self, position: int = 0) -> Unpacker:
        """Unpacks from the start of a frame on; a plain file from any place."""
        self._stream.seek(position)
        return Unpacker(self._stream, self._dictionary, position, is_packed=self.is_packed)

    def find_frame(self, position: int) -> int | None:
        """The next place from which a frame can be unpacked, or looks as the file's first does.

        Args:
            position: from which on it may start.
        """
        while True:
            self._stream.seek(position)
            block = self._stream.read(_CHUNK)
            for found in _FRAME.finditer(block):
                if self._is_frame(position + found.start()):
                    return position + found.start()
            if len(block) < 4:
                return None
            position += len(block) - 3

    def _is_frame(self, position: int) -> bool:
        self._stream.seek(position)
        head = self._stream.read(10)
        if head.startswith(_ZSTD) or (self._signature and _signature(head) == self._signature):
            return True
        unpacker, length = self.unpack(position), 0
        try:
            while length < _TRIED and (piece := unpacker.read()):
                length += len(piece)
        except BrokenFrame:
            return False
        return length > 0


class Unpacker:
    """Unpacks frame after frame; see `PackedFile.unpack`."""

    def __init__(
        self,
        stream: BinaryIO,
        dictionary: zstandard.ZstdCompressionDict | None,
        position: int,
        *,
        is_packed: bool,
    ) -> None:
        self._stream, self._dictionary, self._is_packed = stream, dictionary, is_packed
        self.frame_position = position
        """Where the frame starts that the last piece is from."""
        self._read_to = position
        self._packed = b""
        self._frame: Frame | None = None
        self._frame_bytes = 0
        self._is_at_end = False

    def read(self) -> bytes | None:
        """The next piece of up to some MB; empty where a frame ended well; None at the file's end.

        Raises:
            BrokenFrame: a frame is damaged, ends in the middle, or swells too much.
        """
        if not self._is_packed:
            return self._stream.read(_CHUNK) or None
        if self._is_at_end:
            self._is_at_end, self._frame = False, None
            return b""
        if self._frame is None and not self._open_frame():
            return None
        assert self._frame is not None, "it was opened"
        try:
            while True:
                piece, self._packed = self._frame.unpack(self._packed)
                self._is_at_end = self._frame.is_at_end
                if piece or self._is_at_end:
                    break
                if not self._packed and not self._refill():
                    raise self._broken(Reason.TRUNCATED_FILE, "found a frame that is cut off")
        except _ERRORS as error:
            raise self._broken(Reason.DAMAGED_MEMBER, str(error)) from None
        self._frame_bytes += len(piece)
        used = self._read_to - len(self._packed) - self.frame_position
        if self._frame_bytes > max(_FREE_BYTES, _MAX_EXPANSION * used):
            found = f"found {self._frame_bytes:,} bytes in {used:,}, allowed {_MAX_EXPANSION} times"
            raise self._broken(Reason.COMPRESSION_BOMB, found)
        return piece if piece else self.read()

    def copy(self) -> Unpacker | None:
        """This state, to go on from later; None inside of zstd frames, which cannot be copied."""
        frame = self._frame.copy() if isinstance(self._frame, GzipFrame) else None
        if frame is None:
            return None
        copied = Unpacker(
            self._stream, self._dictionary, self.frame_position, is_packed=self._is_packed
        )
        copied._read_to, copied._packed, copied._frame = self._read_to, self._packed, frame
        copied._frame_bytes, copied._is_at_end = self._frame_bytes, self._is_at_end
        return copied

    def go_on(self) -> None:
        """Puts the file where this state left it, after others have read from it."""
        self._stream.seek(self._read_to)

    def _refill(self) -> bool:
        data = self._stream.read(_READ)
        self._read_to += len(data)
        self._packed += data
        return bool(data)

    def _open_frame(self) -> bool:
        """Goes to the next frame, over padding and what zstd calls skippable."""
        while True:
            self._packed = self._packed.lstrip(b"\0")  # archives are padded with zeros
            if len(self._packed) < 8 and self._refill():
                continue
            if not self._packed:
                return False
            self.frame_position = self._read_to - len(self._packed)
            self._frame_bytes = 0
            if not _SKIPPABLE.match(self._packed):
                break
            size = 8 + int.from_bytes(self._packed[4:8], "little")
            if size > len(self._packed):
                self._read_to = self.frame_position + size
                self._stream.seek(self._read_to)
            self._packed = self._packed[size:]
        if self._packed.startswith(_GZIP):
            self._frame = GzipFrame()
        elif self._packed.startswith(_ZSTD):
            self._frame = ZstdFrame(self._dictionary)
        else:
            found = f"found {self._packed[:4].hex(' ')}, expected a gzip member or zstd frame"
            raise self._broken(Reason.DAMAGED_MEMBER, found)
        return True

    def _broken(self, reason: Reason, detail: str) -> BrokenFrame:
        return BrokenFrame(reason, self.frame_position, detail)


class Frame(Protocol):
    """A decompressor of one frame."""

    is_at_end: bool

    def unpack(self, data: bytes) -> tuple[bytes, bytes]:
        """A piece of text, of bounded size, and what of the data is left for the next call."""
        ...


class GzipFrame:
    """One gzip member, zlib stream, or, without either's header, deflate stream."""

    def __init__(self, *, has_header: bool = True) -> None:
        self._inner: Any = zlib.decompressobj(zlib.MAX_WBITS | 32 if has_header else -15)
        self.is_at_end = False

    def unpack(self, data: bytes) -> tuple[bytes, bytes]:
        """See `Frame`."""
        piece = self._inner.decompress(data[:_FED], _CHUNK)
        self.is_at_end = self._inner.eof
        left = self._inner.unused_data if self.is_at_end else self._inner.unconsumed_tail
        return piece, left + data[_FED:]

    def copy(self) -> GzipFrame:
        """Another one in the same state."""
        copied = GzipFrame()
        copied._inner, copied.is_at_end = self._inner.copy(), self.is_at_end
        return copied


class ZstdFrame:
    """One zstd frame."""

    def __init__(self, dictionary: zstandard.ZstdCompressionDict | None = None) -> None:
        options: dict[str, Any] = {} if dictionary is None else {"dict_data": dictionary}
        unpacking = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW, **options)
        self._inner = unpacking.decompressobj()
        self.is_at_end = False

    def unpack(self, data: bytes) -> tuple[bytes, bytes]:
        """See `Frame`."""
        piece = self._inner.decompress(data[:_FED]) if data else b""
        self.is_at_end = self._inner.eof
        unused = self._inner.unused_data if self.is_at_end else b""
        return piece, unused + data[_FED:]


class BrotliFrame:
    """One brotli stream; the format has no mark by which to tell it."""

    def __init__(self) -> None:
        self._inner = brotli.Decompressor()
        self.is_at_end = False

    def unpack(self, data: bytes) -> tuple[bytes, bytes]:
        """See `Frame`."""
        piece = b""
        if not self._inner.can_accept_more_data():
            piece = self._inner.process(b"", output_buffer_limit=_CHUNK)
        elif data:
            piece = self._inner.process(data[:_FED], output_buffer_limit=_CHUNK)
            data = data[_FED:]
        self.is_at_end = self._inner.is_finished()
        return piece, data


def read_chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Reads a file in pieces, unpacking it as its first bytes say.

    Args:
        stream: the file, open for reading bytes.
        name: of the file, for messages.

    Raises:
        Rejected: a compressed file is damaged, ends in the middle, or swells too much.
    """
    unpacker = PackedFile(stream).unpack()
    try:
        while (piece := unpacker.read()) is not None:
            for start in range(0, len(piece), _CHUNK):
                yield piece[start : start + _CHUNK]
    except BrokenFrame as error:
        whole = Reason.UNREADABLE_FILE if error.reason == Reason.DAMAGED_MEMBER else error.reason
        raise Rejected(whole, f"{name}, {error.detail}") from None


def unpack_limited(data: bytes, frame: Frame, limit: int) -> bytes:
    """Unpacks a small body that may claim to be small and be huge.

    Args:
        data: the compressed body; what follows its first frame is left.
        frame: the decompressor of one frame, which has not begun.
        limit: bytes above which it is refused.

    Raises:
        Rejected: the body is damaged, larger than allowed, or ends in the middle.
    """
    pieces, size, place, pending = [], 0, 0, b""
    try:
        while not frame.is_at_end:
            if not pending:
                pending = data[place : place + _READ]
                place += _READ
            piece, left = frame.unpack(pending)
            if not piece and left == pending and place >= len(data) and not frame.is_at_end:
                raise Rejected(Reason.HTTP_ENCODING, "found a compressed body that is cut off")
            pending = left
            size += len(piece)
            if size > limit:
                raise Rejected(Reason.PAGE_TOO_LARGE, f"found more than {limit} bytes, allowed")
            pieces.append(piece)
    except _ERRORS as error:
        raise Rejected(Reason.HTTP_ENCODING, str(error)) from None
    return b"".join(pieces)


def _signature(head: bytes) -> bytes:
    """What the members of one writer's files have in common: all but the time."""
    return head[:4] + head[8:10]


def _read_dictionary(data: bytes) -> zstandard.ZstdCompressionDict | None:
    """The dictionary at the start of a web archive, which may be packed itself."""
    if data.startswith(_ZSTD):
        try:
            data = unpack_limited(data, ZstdFrame(), _MAX_DICTIONARY)
        except Rejected:
            return None
    return zstandard.ZstdCompressionDict(data)
