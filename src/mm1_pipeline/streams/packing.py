"""Packs documents of many lengths into sequences of one length.

A worked example with T = 8 positions (`i` image token, `t` text, `.` padding):

    documents         b i i t e    b t e    b i i t t t t t t e
    pieces            b i i t e    b t e    b i i t t t t t  |  t e
    sequences         [b i i t t t t t]  [b i i t e | b t e]  [t e | . . . . . .]
    cu_seqlens        [0, 8]             [0, 5, 8]            [0, 2, 8]

A document longer than a sequence is cut into pieces; a piece that goes on has neither BOS nor
EOS at the cut, and its first token is nobody's target. Image tokens are never cut apart, and
images that a piece would end on go to the next piece. Attention never crosses from one
piece to another (`cu_seqlens`), and padding is a document of its own, the last.

Captions and documents are packed whole by best fit: of the pieces in a bounded window, the
largest opens a sequence, and those join it that together leave the least room. Text is joined
and cut where a sequence is full.
Source: MM1, Pre-training ("up to 16 images a sequence", no attention across examples); best
fit instead of one document a sequence is our choice.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import PackingConfig


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or the part of one, that stays together in a sequence.

    Attributes:
        key: Key of the record it comes from.
        input_ids: int32[n].
        loss_mask: bool[n].
        images: Encoded images in order of appearance; image k owns the k-th run of
            `image_tokens` image tokens.
    """

    key: str
    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    images: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class PackedSequence:
    """One sequence of T positions.

    Attributes:
        input_ids: int32[T].
        loss_mask: bool[T], False on padding.
        cu_seqlens: int32[num_documents + 1], from 0 to T; padding is the last document.
        images: Encoded images in order of appearance.
        keys: Key of the record of each piece.
        num_real: Positions that are not padding.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    cu_seqlens: NDArray[np.int32]
    images: tuple[bytes, ...]
    keys: tuple[str, ...]
    num_real: int


def cut_document(document: Piece, packing: PackingConfig, image_id: int) -> list[Piece]:
    """Cuts a document into pieces of at most T positions and `max_images` images.

    Args:
        document: Of any length.
        packing: Sequence length, images, and whether the rest is kept (`split`) or dropped.
        image_id: Id of the image token.

    Returns:
        The pieces in order; with `truncate`, the first alone.
    """
    starts = _image_starts(document, packing.image_tokens, image_id)
    pieces: list[Piece] = []
    begin = 0
    while begin < len(document):
        end = _piece_end(document, begin, starts, packing)
        assert end > begin, "an image fits a sequence; PackingConfig is checked"
        first, last = (bisect.bisect_left(starts, place) for place in (begin, end))
        pieces.append(_slice(document, begin, end, document.images[first:last]))
        if packing.overflow == "truncate":
            break
        begin = end
    return pieces


class BestFitPacker:
    """Packs whole pieces out of a bounded window, each sequence as full as they allow.

    Memory holds `packing.window` pieces however many there are, and the sequences depend on
    nothing but the documents and their order.

    Args:
        packing: Sequence length, images, window.
        pad_id: Fills the rest of a sequence.
        image_id: Id of the image token.
    """

    def __init__(self, packing: PackingConfig, *, pad_id: int, image_id: int) -> None:
        self._packing, self._pad_id, self._image_id = packing, pad_id, image_id
        self._window = _Window()

    def add(self, document: Piece) -> Iterator[PackedSequence]:
        """Takes in one document of any length; yields the sequences that got ready."""
        for piece in cut_document(document, self._packing, self._image_id):
            self._window.add(piece)
            if len(self._window) >= self._packing.window:
                yield self._next_sequence()

    def finish(self) -> Iterator[PackedSequence]:
        """Yields the sequences of the pieces that are left."""
        while self._window:
            yield self._next_sequence()

    def _next_sequence(self) -> PackedSequence:
        length, max_images = self._packing.sequence_length, self._packing.max_images
        first = self._window.take(self._window.largest())
        room, images = length - len(first), max_images - len(first.images)
        sizes = fullest_choice(self._window.counts(room, images), room, images)
        rest = [self._window.take(size) for size in sizes]
        return _assemble([first, *rest], length, self._pad_id)


class TextPacker:
    """Joins documents without images and cuts them where a sequence is full.

    Args:
        packing: Sequence length.
        pad_id: Fills the rest of the last sequence.
    """

    def __init__(self, packing: PackingConfig, *, pad_id: int) -> None:
        self._length, self._pad_id = packing.sequence_length, pad_id
        self._chosen: list[Piece] = []
        self._room = self._length

    def add(self, document: Piece) -> Iterator[PackedSequence]:
        """Takes in one document of any length; yields the sequences that got full."""
        assert not document.images, "text has no images"
        begin = 0
        while begin < len(document):
            end = min(len(document), begin + self._room)
            self._chosen.append(_slice(document, begin, end, ()))
            self._room -= end - begin
            begin = end
            if not self._room:
                yield from self.finish()

    def finish(self) -> Iterator[PackedSequence]:
        """Yields the last sequence, if anything is left."""
        if self._chosen:
            yield _assemble(self._chosen, self._length, self._pad_id)
        self._chosen, self._room = [], self._length


Packer = BestFitPacker | TextPacker


def make_packer(kind: RecordKind, packing: PackingConfig, *, pad_id: int, image_id: int) -> Packer:
    """The packer of a kind of record.

    Text is cut anywhere, so that nothing is padded, unless overflow is to be dropped.
    """
    if kind == RecordKind.TEXT and packing.overflow == "split":
        return TextPacker(packing, pad_id=pad_id)
    return BestFitPacker(packing, pad_id=pad_id, image_id=image_id)


Size = tuple[int, int]
"""Positions and images of a piece."""


def fullest_choice(available: Sequence[tuple[Size, int]], room: int, images: int) -> list[Size]:
    """Chooses pieces that leave as little room as possible.

    Exact, by dynamic programming over all sums: bit s of `reachable[k]` says that some choice
    has s positions and k images. Of equal choices, the one of larger pieces is taken, and the
    search ends as soon as no room is left.

    Args:
        available: Each size, the largest first, and how many pieces have it.
        room: Positions to fill, 0..T.
        images: Images that the chosen pieces may have together.

    Returns:
        The sizes chosen, a size as often as it is taken.
    """
    within_room = (1 << (room + 1)) - 1
    reachable = [1] + [0] * images
    history: list[tuple[Size, list[int]]] = []
    for size, count in available:
        length, own_images = size
        for _ in range(min(count, room // length)):
            before = reachable
            added = [0] * own_images + [sums << length & within_room for sums in before]
            reachable = [old | new for old, new in zip(before, added, strict=False)]
            if reachable == before:
                break
            history.append((size, before))
        if any(sums >> room for sums in reachable):
            break
    total = max(sums.bit_length() for sums in reachable) - 1
    used = next(k for k, sums in enumerate(reachable) if sums >> total)
    chosen: list[Size] = []
    for size, before in reversed(history):
        if not before[used] >> total & 1:
            chosen.append(size)
            total, used = total - size[0], used - size[1]
    return chosen[::-1]


class _Window:
    """Waiting pieces by size; of one size, the oldest is taken first."""

    def __init__(self) -> None:
        self._by_size: dict[Size, deque[Piece]] = {}
        self._sizes: list[Size] = []
        self._num_pieces = 0

    def __len__(self) -> int:
        return self._num_pieces

    def add(self, piece: Piece) -> None:
        size = (len(piece), len(piece.images))
        if size not in self._by_size:
            self._by_size[size] = deque()
            bisect.insort(self._sizes, size)
        self._by_size[size].append(piece)
        self._num_pieces += 1

    def largest(self) -> Size:
        return self._sizes[-1]

    def counts(self, room: int, images: int) -> list[tuple[Size, int]]:
        """The sizes that fit, the largest first, and how many pieces have each."""
        fitting = self._sizes[: bisect.bisect_left(self._sizes, (room + 1,))]
        return [(size, len(self._by_size[size])) for size in reversed(fitting) if size[1] <= images]

    def take(self, size: Size) -> Piece:
        pieces = self._by_size[size]
        piece = pieces.popleft()
        if not pieces:
            del self._by_size[size]
            del self._sizes[bisect.bisect_left(self._sizes, size)]
        self._num_pieces -= 1
        return piece


def _image_starts(document: Piece, image_tokens: int, image_id: int) -> list[int]:
    """Where the run of each image begins; checks that runs and images agree."""
    places = np.flatnonzero(document.input_ids == image_id)
    assert len(places) == len(document.images) * image_tokens, (
        f"record {document.key}: {len(places)} image tokens for {len(document.images)} images "
        f"of {image_tokens}"
    )
    return places[::image_tokens].tolist()


def _piece_end(document: Piece, begin: int, starts: list[int], packing: PackingConfig) -> int:
    """Where the piece that begins at `begin` ends."""
    end = min(len(document), begin + packing.sequence_length)
    first = bisect.bisect_left(starts, begin)
    if first + packing.max_images < len(starts):
        end = min(end, starts[first + packing.max_images])
    last = bisect.bisect_left(starts, end) - 1
    if last >= first and end < starts[last] + packing.image_tokens:
        end = starts[last]
    if end == len(document):
        return end
    place = _before_trailing_images(begin, end, starts, packing.image_tokens)
    return place if document.loss_mask[begin:place].any() else end


def _before_trailing_images(begin: int, end: int, starts: list[int], image_tokens: int) -> int:
    """Where the images begin that the piece would end on.

    They move to the next piece, where their text is; in this one they would teach nothing.
    """
    for start in reversed(starts[bisect.bisect_left(starts, begin) :]):
        if start + image_tokens == end:
            end = start
    return end


def _slice(document: Piece, begin: int, end: int, images: tuple[bytes, ...]) -> Piece:
    return Piece(document.key, document.input_ids[begin:end], document.loss_mask[begin:end], images)


def _assemble(pieces: Sequence[Piece], length: int, pad_id: int) -> PackedSequence:
    """Lays pieces side by side and pads the rest."""
    borders = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    num_real = int(borders[-1])
    assert num_real <= length, f"{num_real} positions packed into {length}"
    input_ids = np.full(length, pad_id, dtype=np.int32)
    loss_mask = np.zeros(length, dtype=np.bool_)
    input_ids[:num_real] = np.concatenate([piece.input_ids for piece in pieces])
    loss_mask[:num_real] = np.concatenate([piece.loss_mask for piece in pieces])
    if num_real < length:
        borders = np.append(borders, np.int32(length))
    return PackedSequence(
        input_ids,
        loss_mask,
        borders.astype(np.int32),
        tuple(image for piece in pieces for image in piece.images),
        tuple(piece.key for piece in pieces),
        num_real,
    )
