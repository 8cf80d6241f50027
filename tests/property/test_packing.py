"""Packing loses nothing, mixes nothing up, and keeps its limits."""

from __future__ import annotations

from collections import Counter
from itertools import count, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import PackingConfig
from mm1_pipeline.streams.packing import (
    BestFitPacker,
    PackedSequence,
    Packer,
    Piece,
    TextPacker,
    cut_document,
    make_packer,
)

PAD, IMAGE = 0, 3


@st.composite
def packings(draw: st.DrawFn) -> PackingConfig:
    image_tokens = draw(st.integers(1, 6))
    return PackingConfig(
        sequence_length=draw(st.integers(image_tokens + 2, 40)),
        max_images=draw(st.integers(1, 4)),
        image_tokens=image_tokens,
        overflow=draw(st.sampled_from(["split", "truncate"])),
        window=draw(st.integers(1, 12)),
    )


@st.composite
def documents(draw: st.DrawFn, packing: PackingConfig, max_images: int = 9) -> list[Piece]:
    """Documents whose text tokens and images are all different, so that each can be followed."""
    tokens, images = count(10), count()
    made = []
    for number in range(draw(st.integers(1, 12))):
        ids: list[int] = []
        inside: list[bytes] = []
        for run in draw(st.lists(st.integers(0, 15), min_size=1, max_size=max_images + 1)):
            if ids and len(inside) < max_images:
                ids += [IMAGE] * packing.image_tokens
                inside.append(b"%d" % next(images))
            ids += [next(tokens) for _ in range(run)]
        ids.append(next(tokens))
        input_ids = np.array(ids, dtype=np.int32)
        made.append(Piece(str(number), input_ids, input_ids != IMAGE, tuple(inside)))
    return made


def pack(packer: Packer, made: list[Piece]) -> list[PackedSequence]:
    sequences = [sequence for document in made for sequence in packer.add(document)]
    return [*sequences, *packer.finish()]


def unpack(sequence: PackedSequence, image_tokens: int) -> list[tuple[str, bytes, bytes, tuple]]:
    """The pieces of a sequence, each with the images that its tokens claim."""
    images = list(sequence.images)
    pieces = []
    borders = sequence.cu_seqlens.tolist()
    for key, (begin, end) in zip(sequence.keys, pairwise(borders), strict=False):
        ids = sequence.input_ids[begin:end]
        num_images = int((ids == IMAGE).sum()) // image_tokens
        mine, images = tuple(images[:num_images]), images[num_images:]
        pieces.append((key, ids.tobytes(), sequence.loss_mask[begin:end].tobytes(), mine))
    assert not images, "images that no token claims"
    return pieces


@given(st.data(), packings())
@settings(max_examples=150, deadline=None)
def test_pieces_are_the_document_in_order_and_never_cut_an_image(
    data: st.DataObject, packing: PackingConfig
) -> None:
    for document in data.draw(documents(packing)):
        pieces = cut_document(document, packing, IMAGE)
        ids = np.concatenate([piece.input_ids for piece in pieces])
        images = [image for piece in pieces for image in piece.images]
        if packing.overflow == "split":
            assert ids.tolist() == document.input_ids.tolist()
            assert images == list(document.images)
        else:
            assert len(pieces) == 1
            assert ids.tolist() == document.input_ids[: len(ids)].tolist()
        for piece in pieces:
            assert 0 < len(piece) <= packing.sequence_length
            assert len(piece.images) <= packing.max_images
            # Equal numbers mean whole images: a cut image would leave tokens over.
            assert (piece.input_ids == IMAGE).sum() == len(piece.images) * packing.image_tokens
        for piece in pieces[:-1]:
            assert piece.input_ids[-1] != IMAGE or not piece.loss_mask.any()


@given(st.data(), packings())
@settings(max_examples=150, deadline=None)
def test_best_fit_places_every_piece_once(data: st.DataObject, packing: PackingConfig) -> None:
    made = data.draw(documents(packing))
    sequences = pack(BestFitPacker(packing, pad_id=PAD, image_id=IMAGE), made)
    expected = Counter(
        (piece.key, piece.input_ids.tobytes(), piece.loss_mask.tobytes(), piece.images)
        for document in made
        for piece in cut_document(document, packing, IMAGE)
    )
    found = Counter(
        piece for sequence in sequences for piece in unpack(sequence, packing.image_tokens)
    )
    assert found == expected


@given(st.data(), packings(), st.sampled_from([RecordKind.CAPTION, RecordKind.TEXT]))
@settings(max_examples=150, deadline=None)
def test_sequences_keep_their_limits(
    data: st.DataObject, packing: PackingConfig, kind: RecordKind
) -> None:
    made = data.draw(documents(packing, max_images=0 if kind == RecordKind.TEXT else 9))
    for sequence in pack(make_packer(kind, packing, pad_id=PAD, image_id=IMAGE), made):
        length = packing.sequence_length
        assert sequence.input_ids.shape == sequence.loss_mask.shape == (length,)
        assert len(sequence.images) <= packing.max_images
        assert sequence.cu_seqlens[0] == 0
        assert sequence.cu_seqlens[-1] == length
        assert (np.diff(sequence.cu_seqlens) > 0).all()
        padding = sequence.input_ids[sequence.num_real :]
        assert (padding == PAD).all()
        assert not sequence.loss_mask[sequence.num_real :].any()
        # Padding is one document of its own.
        assert len(sequence.cu_seqlens) - 1 == len(sequence.keys) + (len(padding) > 0)
        assert len(padding) == 0 or sequence.cu_seqlens[-2] == sequence.num_real


@given(st.data(), packings())
@settings(max_examples=100, deadline=None)
def test_text_keeps_its_order_and_leaves_no_gap(
    data: st.DataObject, packing: PackingConfig
) -> None:
    made = data.draw(documents(packing, max_images=0))
    sequences = pack(TextPacker(packing, pad_id=PAD), made)
    found = [token for s in sequences for token in s.input_ids[: s.num_real].tolist()]
    assert found == [token for document in made for token in document.input_ids.tolist()]
    assert all(s.num_real == packing.sequence_length for s in sequences[:-1])


@given(st.data(), packings())
@settings(max_examples=50, deadline=None)
def test_packing_is_deterministic(data: st.DataObject, packing: PackingConfig) -> None:
    made = data.draw(documents(packing))
    first, second = (
        pack(BestFitPacker(packing, pad_id=PAD, image_id=IMAGE), made) for _ in range(2)
    )
    assert [(s.input_ids.tobytes(), s.images, s.keys) for s in first] == [
        (s.input_ids.tobytes(), s.images, s.keys) for s in second
    ]


@given(st.data(), packings())
@settings(max_examples=50, deadline=None)
def test_no_piece_that_is_left_would_have_fitted(
    data: st.DataObject, packing: PackingConfig
) -> None:
    """With all pieces in the window, a sequence is only closed when nothing more fits."""
    packing = PackingConfig(
        sequence_length=packing.sequence_length,
        max_images=packing.max_images,
        image_tokens=packing.image_tokens,
        window=10_000,
    )
    made = data.draw(documents(packing))
    sequences = pack(BestFitPacker(packing, pad_id=PAD, image_id=IMAGE), made)
    later: list[tuple[int, int]] = []
    for sequence in reversed(sequences):
        room = packing.sequence_length - sequence.num_real
        images = packing.max_images - len(sequence.images)
        assert not any(size <= room and number <= images for size, number in later)
        later += [
            (len(ids) // 4, len(mine)) for _, ids, _, mine in unpack(sequence, packing.image_tokens)
        ]
