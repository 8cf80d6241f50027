"""Packs one partition of a source: first without images, to plan, then into shard files.

Runs in a process of its own where there are several, so nothing here imports torch.

Columns of a sequence of T positions; nothing is pickled:

    input_ids      int32[T]
    loss_mask      uint8[T]
    cu_seqlens     int32[num_documents + 1]   from 0 to T; padding is the last document
    images         bytes                      encoded sub-images, one after the other; an image
                                              that is decomposed gives several
    image_offsets  int32[num_images + 1]      where each begins, and where the last ends
    keys           str                        JSON list of the records' keys
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig, SubImageConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import SYNTHETIC_OF, Record
from mm1_pipeline.ground.files import write_text
from mm1_pipeline.streams.images import encode_image
from mm1_pipeline.streams.mds import MDSWriter, check_content
from mm1_pipeline.streams.packing import PackedSequence, Piece, make_packer
from mm1_pipeline.streams.partitions import Partition, read_partition
from mm1_pipeline.streams.serialization import TokenizedDocument, serialize
from mm1_pipeline.streams.shard_index import Split
from mm1_pipeline.streams.shard_store import ShardStore
from mm1_pipeline.streams.sub_images import count_sub_images, decompose
from mm1_pipeline.streams.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

COMPLETED = "completed.json"
_MEASURED_RECORDS = 16
"""Records of which a plan encodes the images, to foretell the bytes of all."""


@dataclass
class SplitCounts:
    """What one split of one source holds."""

    records: int = 0
    sequences: int = 0
    positions: int = 0
    real_positions: int = 0
    image_tokens: int = 0
    images: int = 0
    """Sub-images: an image, or the overview and each crop of one."""
    truncated_positions: int = 0
    """Positions that overflow dropped, and those of exchanges that fit no sequence; else 0."""
    dropped_records: int = 0
    """Conversations of which not even the first exchange fits a sequence."""

    def __add__(self, other: SplitCounts) -> SplitCounts:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return SplitCounts(*(mine + theirs for mine, theirs in pairs))

    @property
    def fill(self) -> float:
        """Real over all positions."""
        return self.real_positions / self.positions if self.positions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The counts with what follows from them."""
        return {
            **dataclasses.asdict(self),
            "text_tokens": self.real_positions - self.image_tokens,
            "fill": round(self.fill, 6),
        }


Tokenize = Callable[
    [Record, Tokenizer, PackingConfig, Sequence[int]], tuple[TokenizedDocument | None, int]
]
"""Gives a record's tokens out of the sub-images of each of its images, None where nothing of it
fits a sequence; and how many positions all of it has. Given to whoever packs, so that packing
documents depends on no rule for conversations."""


@dataclass(frozen=True, slots=True)
class PartitionJob:
    """Everything a process needs to pack a partition.

    Attributes:
        config: Parameters of the stage.
        kind: Of the source's records.
        records_dir: The artifact that contains `records/`.
        tokenizer: The tokenizer's JSON.
        partition: Which records.
        folder: Where its files wait; a finished partition has COMPLETED there.
        store: Where its files go as soon as they are written; None leaves them in `folder`.
        identity: What the files depend on; files of another identity are not reused.
        tokenize: Turns records into tokens.
    """

    config: ShardConfig
    kind: RecordKind
    records_dir: Path
    tokenizer: str
    partition: Partition
    folder: Path
    store: ShardStore | None
    identity: str
    tokenize: Tokenize


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What a partition will come to."""

    counts: dict[Split, SplitCounts]
    bytes_per_image: float | None
    """Mean of the first sub-images, encoded; None where none was measured."""


@dataclass(frozen=True, slots=True)
class WrittenPartition:
    """What a partition came to.

    Attributes:
        counts: Of each split.
        shards: Entries for the index of each split, in the order of the sequences.
    """

    counts: dict[Split, SplitCounts] = field(default_factory=dict)
    shards: dict[Split, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        entries = itertools.chain.from_iterable(self.shards.values())
        return sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in entries)


def split_of(source: str, key: str, validation_fraction: float, seed: int) -> Split:
    """Which split a record belongs to: decided by its key alone.

    So a record stays where it is when others come or go, and is never in both.
    """
    digest = hashlib.blake2b(json.dumps([seed, source, key]).encode(), digest_size=8).digest()
    is_held_out = int.from_bytes(digest, "big") < validation_fraction * 2**64
    return Split.VALIDATION if is_held_out else Split.TRAIN


def split_of_record(record: Record, config: ShardConfig) -> Split:
    """The split of a record; a synthetic caption goes where the image's own caption went.

    Otherwise training would see images that are held out.
    """
    origin = record.metadata.get(SYNTHETIC_OF)
    source, key = (
        (origin["source"], origin["key"])
        if isinstance(origin, dict)
        else (record.source, record.key)
    )
    return split_of(source, key, config.validation_fraction, config.seed)


def plan_partition(job: PartitionJob) -> PartitionPlan:
    """Packs a partition without its images and keeps nothing but the counts.

    Source: none in the paper; planning before writing is our choice.
    """
    counts = {split: SplitCounts() for split in Split}
    packers = {split: _SplitPacker(job, _ignore) for split in Split}
    for record in read_partition(job.records_dir, job.partition, with_bytes=False):
        packers[split_of_record(record, job.config)].add(record, _placeholders(record, job.config))
    for split, packer in packers.items():
        packer.finish()
        counts[split] = packer.counts
    return PartitionPlan(counts, _bytes_per_image(job))


def write_partition(job: PartitionJob) -> WrittenPartition:
    """Writes the shard files of a partition, or takes those an earlier run finished.

    What a killed run left of an unfinished partition, or is damaged since, is removed.
    """
    finished = read_completed(job)
    if finished is not None and (job.store is not None or _is_whole(job, finished)):
        return finished
    shutil.rmtree(job.folder, ignore_errors=True)
    writers = {split: _open_writer(job, split) for split in Split}
    packers = {
        split: _SplitPacker(job, lambda sequence, to=writer: to.write(_to_sample(sequence)))
        for split, writer in writers.items()
    }
    for record in read_partition(job.records_dir, job.partition):
        sub_images = encode_sub_images(
            [image.bytes for image in record.images], job.config.image, job.config.sub_images
        )
        packers[split_of_record(record, job.config)].add(record, sub_images)
    for split, packer in packers.items():
        packer.finish()
        writers[split].finish()
    written = WrittenPartition(
        {split: packer.counts for split, packer in packers.items()},
        {split: writer.shards for split, writer in writers.items()},
    )
    if job.store is not None:
        _upload(job, job.store, written)
    _write_completed(job, written)
    return written


def shard_files(folder: Path, source: str, written: WrittenPartition) -> Iterator[tuple[Path, str]]:
    """Each file of a written partition, and its name relative to the folder of all shards."""
    for split, entries in written.shards.items():
        for entry in entries:
            name = (entry["zip_data"] or entry["raw_data"])["basename"]
            yield folder / split.value / name, f"{source}/{split.value}/{name}"


def _is_whole(job: PartitionJob, written: WrittenPartition) -> bool:
    entries = [entry for split in written.shards.values() for entry in split]
    files = [file for file, _ in shard_files(job.folder, job.partition.source, written)]
    for file, entry in zip(files, entries, strict=True):
        try:
            check_content(file, file.read_bytes(), entry["zip_data"] or entry["raw_data"])
        except (OSError, ValueError) as error:
            logger.warning("%s Its partition is written again.", error)
            return False
    return True


def read_completed(job: PartitionJob) -> WrittenPartition | None:
    """What an earlier run finished of the same records with the same parameters."""
    try:
        content = json.loads((job.folder / COMPLETED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content["identity"] != job.identity:
        return None
    return WrittenPartition(
        {Split(name): SplitCounts(**counts) for name, counts in content["counts"].items()},
        {Split(name): entries for name, entries in content["shards"].items()},
    )


class _SplitPacker:
    """Packs the records of one split and counts what comes of them."""

    def __init__(self, job: PartitionJob, emit: Callable[[PackedSequence], None]) -> None:
        self._config, self._emit = job.config, emit
        self._tokenizer, self._tokenize = _load_tokenizer(job.tokenizer), job.tokenize
        self._packer = make_packer(
            job.kind,
            job.config.packing,
            pad_id=self._tokenizer.pad_id,
            image_id=self._tokenizer.image_id,
        )
        self.counts = SplitCounts()

    def add(self, record: Record, sub_images: list[list[bytes]]) -> None:
        num_sub_images = [len(image) for image in sub_images]
        tokens, num_positions = self._tokenize(
            record, self._tokenizer, self._config.packing, num_sub_images
        )
        self.counts.records += 1
        self.counts.truncated_positions += num_positions
        if tokens is None:
            self.counts.dropped_records += 1
            return
        in_order = tuple(each for index in tokens.images for each in sub_images[index])
        piece = Piece(record.key, tokens.input_ids, tokens.loss_mask, in_order)
        for sequence in self._packer.add(piece):
            self._take(sequence)

    def finish(self) -> None:
        for sequence in self._packer.finish():
            self._take(sequence)

    def _take(self, sequence: PackedSequence) -> None:
        counts = self.counts
        counts.sequences += 1
        counts.positions += len(sequence.input_ids)
        counts.real_positions += sequence.num_real
        counts.truncated_positions -= sequence.num_real
        counts.images += len(sequence.images)
        counts.image_tokens += len(sequence.images) * self._config.packing.image_tokens
        self._emit(sequence)


def tokenize_document(
    record: Record, tokenizer: Tokenizer, packing: PackingConfig, num_sub_images: Sequence[int]
) -> tuple[TokenizedDocument, int]:
    """A caption, a document or a text in tokens, and how many they are. See `Tokenize`."""
    assert record.kind != RecordKind.CONVERSATION, "name streams.conversations' rule"
    whole = serialize(
        record.segments, tokenizer, packing.image_tokens, num_sub_images=num_sub_images
    )
    return whole, len(whole.input_ids)


def encode_sub_images(
    encoded: Sequence[bytes], transform: ImageTransform, sub_images: SubImageConfig
) -> list[list[bytes]]:
    """Opens, decomposes and encodes the images of one record for the shards."""
    opened = (open_image(data) for data in encoded)
    return [
        [encode_image(each, transform) for each in decompose(image, transform, sub_images)]
        for image in opened
    ]


def _placeholders(record: Record, config: ShardConfig) -> list[list[bytes]]:
    """As many empty sub-images as each image of a record will have."""
    sizes = ((image.width, image.height) for image in record.images)
    return [[b""] * count_sub_images(*size, config.image, config.sub_images) for size in sizes]


def _bytes_per_image(job: PartitionJob) -> float | None:
    """Measured on the first partition of a source; the others are taken to be alike."""
    if job.partition.number or job.kind == RecordKind.TEXT:
        return None
    sizes: list[int] = []
    for record in itertools.islice(
        read_partition(job.records_dir, job.partition), _MEASURED_RECORDS
    ):
        sub_images = encode_sub_images(
            [image.bytes for image in record.images], job.config.image, job.config.sub_images
        )
        sizes += [len(each) for image in sub_images for each in image]
    return sum(sizes) / len(sizes) if sizes else None


def _open_writer(job: PartitionJob, split: Split) -> MDSWriter:
    length = job.config.packing.sequence_length
    return MDSWriter(
        job.folder / split.value,
        {
            "input_ids": f"ndarray:int32:{length}",
            "loss_mask": f"ndarray:uint8:{length}",
            "cu_seqlens": "ndarray:int32",
            "images": "bytes",
            "image_offsets": "ndarray:int32",
            "keys": "str",
        },
        name=f"shard.{job.partition.number:05d}",
        compression=job.config.compression,
        size_limit=job.config.shard_bytes,
    )


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


def _upload(job: PartitionJob, store: ShardStore, written: WrittenPartition) -> None:
    """Brings the files to the store and frees their room here."""
    for file, name in shard_files(job.folder, job.partition.source, written):
        store.put(file, name)
        file.unlink()


def _write_completed(job: PartitionJob, written: WrittenPartition) -> None:
    content = {
        "identity": job.identity,
        "counts": {split.value: dataclasses.asdict(c) for split, c in written.counts.items()},
        "shards": {split.value: entries for split, entries in written.shards.items()},
    }
    write_text(job.folder / COMPLETED, json.dumps(content))


@lru_cache(maxsize=2)
def _load_tokenizer(content: str) -> Tokenizer:
    return Tokenizer.from_json(content)


def _ignore(sequence: PackedSequence) -> None:
    """A plan keeps no sequence."""
