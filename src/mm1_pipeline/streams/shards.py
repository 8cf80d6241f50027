"""Writes records as packed sequences in MDS shards: one dataset a source and split.

Columns of a sequence of T positions; nothing is pickled:

    input_ids      int32[T]
    loss_mask      uint8[T]
    cu_seqlens     int32[num_documents + 1]   from 0 to T; padding is the last document
    images         bytes                      encoded squares, one after the other; an image
                                              that is decomposed gives several
    image_offsets  int32[num_images + 1]      where each begins, and where the last ends
    keys           str                        JSON list of the records' keys
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format.mds import MDSWriter

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.corpus.records import Record, read_records
from mm1_pipeline.streams.conversations import fit_conversation, serialize_conversation
from mm1_pipeline.streams.packing import PackedSequence, Piece, make_packer
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import (
    HASHES,
    INDEX_FILE,
    ShardIndex,
    SourceShards,
    Split,
    SplitShards,
    dataset_directory,
    file_sha256,
)
from mm1_pipeline.streams.sub_images import prepare_tiles
from mm1_pipeline.streams.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_RECORDS_AHEAD = 8
"""Records a worker process may have waiting; bounds memory."""


@dataclass
class SplitCounts:
    """What one split of one source holds."""

    records: int = 0
    sequences: int = 0
    positions: int = 0
    real_positions: int = 0
    image_tokens: int = 0
    images: int = 0
    """Squares: an image, or the overview and each crop of one."""
    truncated_positions: int = 0
    """Positions that overflow dropped, and those of exchanges that fit no sequence; else 0."""
    dropped_records: int = 0
    """Conversations of which not even the first exchange fits a sequence."""

    def __add__(self, other: SplitCounts) -> SplitCounts:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return SplitCounts(*(mine + theirs for mine, theirs in pairs))

    def to_dict(self) -> dict[str, Any]:
        """The counts with what follows from them; `fill` is real over all positions."""
        fill = self.real_positions / self.positions if self.positions else 0.0
        return {
            **dataclasses.asdict(self),
            "text_tokens": self.real_positions - self.image_tokens,
            "fill": round(fill, 6),
        }


def write_shards(
    config: ShardConfig,
    records_dir: Path,
    tokenizer: Tokenizer,
    sources: dict[str, RecordKind],
    output_dir: Path,
) -> dict[str, Any]:
    """Packs the records of each source and writes a training and a validation dataset.

    Each source is read once, in constant memory. The same records, parameters and tokenizer
    give the same bytes, whatever the number of workers.

    Args:
        config: Packing, image transform, validation share, compression.
        records_dir: The artifact that contains `records/`.
        tokenizer: Encodes the text.
        sources: Training sources and their kinds: those of pre-training, or conversations.
        output_dir: Gets `<source>/train`, `<source>/validation` and `shards.json`.

    Returns:
        The shard report: counts and fill by source and split, and by kind (training only).

    Raises:
        ValueError: A source has no records.
    """
    index_sources: dict[str, SourceShards] = {}
    report: dict[str, Any] = {}
    streams: dict[str, SplitCounts] = {}
    for source, kind in sources.items():
        counts = _write_source(config, records_dir, tokenizer, source, kind, output_dir)
        index_sources[source] = SourceShards(
            kind, *(_split_shards(output_dir, source, split, counts[split]) for split in Split)
        )
        report[source] = {
            "kind": kind.value,
            **{split.value: counts[split].to_dict() for split in Split},
        }
        total = streams.get(kind.value, SplitCounts())
        streams[kind.value] = total + counts[Split.TRAIN]
    _index(config, tokenizer, index_sources).write(output_dir)
    return {
        "sources": report,
        "streams": {kind: counts.to_dict() for kind, counts in streams.items()},
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        "packing": dataclasses.asdict(config.packing),
    }


def split_of(source: str, key: str, validation_fraction: float, seed: int) -> Split:
    """Which split a record belongs to: decided by its key alone.

    So a record stays where it is when others come or go, and is never in both.
    """
    digest = hashlib.blake2b(json.dumps([seed, source, key]).encode(), digest_size=8).digest()
    is_held_out = int.from_bytes(digest, "big") < validation_fraction * 2**64
    return Split.VALIDATION if is_held_out else Split.TRAIN


class _SplitWriter:
    """Packs the documents of one split and writes the sequences.

    The index is written by `finish` only, so an interrupted dataset has none.
    """

    def __init__(
        self, config: ShardConfig, kind: RecordKind, tokenizer: Tokenizer, directory: Path
    ) -> None:
        length = config.packing.sequence_length
        self.counts = SplitCounts()
        self._image_tokens = config.packing.image_tokens
        self._packer = make_packer(
            kind, config.packing, pad_id=tokenizer.pad_id, image_id=tokenizer.image_id
        )
        self._writer = MDSWriter(
            out=str(directory),
            columns={
                "input_ids": f"ndarray:int32:{length}",
                "loss_mask": f"ndarray:uint8:{length}",
                "cu_seqlens": "ndarray:int32",
                "images": "bytes",
                "image_offsets": "ndarray:int32",
                "keys": "str",
            },
            compression=config.compression or None,
            hashes=list(HASHES),
            size_limit=config.shard_bytes,
        )

    def add(self, document: Piece | None, num_positions: int) -> None:
        """Takes in what is left of a record of so many positions; None is nothing."""
        self.counts.records += 1
        self.counts.truncated_positions += num_positions
        if document is None:
            self.counts.dropped_records += 1
            return
        for sequence in self._packer.add(document):
            self._write(sequence)

    def finish(self) -> None:
        for sequence in self._packer.finish():
            self._write(sequence)
        self._writer.finish()

    def _write(self, sequence: PackedSequence) -> None:
        counts = self.counts
        counts.sequences += 1
        counts.positions += len(sequence.input_ids)
        counts.real_positions += sequence.num_real
        counts.truncated_positions -= sequence.num_real
        counts.images += len(sequence.images)
        counts.image_tokens += len(sequence.images) * self._image_tokens
        self._writer.write(_to_sample(sequence))


def _to_sample(sequence: PackedSequence) -> dict[str, Any]:
    offsets = np.cumsum([0, *map(len, sequence.images)])
    assert offsets[-1] < 2**31, "image offsets are int32"
    return {
        "input_ids": sequence.input_ids,
        "loss_mask": sequence.loss_mask.astype(np.uint8),
        "cu_seqlens": sequence.cu_seqlens,
        "images": b"".join(sequence.images),
        "image_offsets": offsets.astype(np.int32),
        "keys": json.dumps(sequence.keys, ensure_ascii=False),
    }


def _write_source(
    config: ShardConfig,
    records_dir: Path,
    tokenizer: Tokenizer,
    source: str,
    kind: RecordKind,
    output_dir: Path,
) -> dict[Split, SplitCounts]:
    writers = {
        split: _SplitWriter(config, kind, tokenizer, dataset_directory(output_dir, source, split))
        for split in Split
    }
    may_lose = kind == RecordKind.CONVERSATION or config.packing.overflow == "truncate"
    records = read_records(records_dir, source)
    for record, squares in _with_squares(records, kind, config):
        piece, num_positions = _to_piece(config, record, squares, tokenizer)
        split = split_of(source, record.key, config.validation_fraction, config.seed)
        writers[split].add(piece, num_positions)
    for split, writer in writers.items():
        writer.finish()
        lost = writer.counts.truncated_positions
        assert lost == 0 or may_lose, (source, split, lost)
        if dropped := writer.counts.dropped_records:
            logger.warning(
                "%s, %s: %d of %d conversations are longer than a sequence already in their first "
                "exchange and are left out; raise packing.sequence_length or max_images.",
                source,
                split.value,
                dropped,
                writer.counts.records,
            )
    return {split: writer.counts for split, writer in writers.items()}


def _to_piece(
    config: ShardConfig, record: Record, squares: list[list[bytes]], tokenizer: Tokenizer
) -> tuple[Piece | None, int]:
    """A record as what is packed, and how many positions it had before it was cut to fit."""
    packing, tiles = config.packing, [len(image) for image in squares]
    if record.kind == RecordKind.CONVERSATION:
        whole = serialize_conversation(
            record.segments, tokenizer, packing.image_tokens, tiles=tiles
        )
        tokens = fit_conversation(whole, tokenizer, packing, tiles)
    else:
        whole = serialize(record.segments, tokenizer, packing.image_tokens, tiles=tiles)
        tokens = whole
    if tokens is None:
        return None, len(whole.input_ids)
    in_order = tuple(square for index in tokens.images for square in squares[index])
    piece = Piece(record.key, tokens.input_ids, tokens.loss_mask, in_order)
    return piece, len(whole.input_ids)


def _with_squares(
    records: Iterable[Record], kind: RecordKind, config: ShardConfig
) -> Iterator[tuple[Record, list[list[bytes]]]]:
    """Pairs each record with the encoded squares of its images, in the order of the records."""
    convert = partial(prepare_tiles, transform=config.image, sub_images=config.sub_images)
    if config.num_workers <= 1 or kind == RecordKind.TEXT:
        for record in records:
            yield record, convert([image.bytes for image in record.images])
        return
    # Spawned, because forking a process that runs threads (Arrow, tokenizers) can deadlock.
    with ProcessPoolExecutor(config.num_workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[tuple[Record, Future[list[list[bytes]]]]] = deque()
        for record in records:
            waiting.append((record, pool.submit(convert, [i.bytes for i in record.images])))
            if len(waiting) > config.num_workers * _RECORDS_AHEAD:
                first, images = waiting.popleft()
                yield first, images.result()
        for record, images in waiting:
            yield record, images.result()


def _split_shards(output_dir: Path, source: str, split: Split, counts: SplitCounts) -> SplitShards:
    index_file = dataset_directory(output_dir, source, split) / INDEX_FILE
    return SplitShards(counts.sequences, file_sha256(index_file))


def _index(
    config: ShardConfig, tokenizer: Tokenizer, sources: dict[str, SourceShards]
) -> ShardIndex:
    return ShardIndex(
        packing=config.packing,
        image=config.image,
        sub_images=config.sub_images,
        special_ids={
            "pad": tokenizer.pad_id,
            "bos": tokenizer.bos_id,
            "eos": tokenizer.eos_id,
            "image": tokenizer.image_id,
        },
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        sources=sources,
    )
