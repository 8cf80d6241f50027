"""The steps of ingesting one partition of a source.

A step reads what the step before it left and writes a folder of its own, first under another
name, so that a folder that is there is whole: a run that was killed goes on with what is missing.

    index    only for web archives of several partitions: where their images lie
    read     every record alone: reader, rules for texts and captions, images, evaluation data,
             scores of captions
    judge    rules that need the whole source, then keys of what is left
    write    what is kept, in the order it was read
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mm1_pipeline.config.ingest import IngestConfig, RecordKind, SourceConfig, SourceSplit
from mm1_pipeline.corpus.caption_scores import (
    Checked,
    ScorerReference,
    open_scorer,
    reject_low_scores,
)
from mm1_pipeline.corpus.decontamination import Decontaminator
from mm1_pipeline.corpus.deduplication import (
    HASH_SCHEMA,
    IMAGE_SCHEMA,
    KEY_SCHEMA,
    NAME_SCHEMA,
    PARTITION_STRIDE,
    TableWriter,
    min_hash_keys,
    read_frequent,
    read_repeats,
    text_key,
)
from mm1_pipeline.corpus.filters import (
    FilterResult,
    FrequentImages,
    ImageChecker,
    check_record,
    judge_record,
)
from mm1_pipeline.corpus.perceptual_hash import lookup_keys
from mm1_pipeline.corpus.progress import track_source
from mm1_pipeline.corpus.quarantine import Quarantine, Tally
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    PassedOver,
    RawRecord,
    RejectedRecord,
    Source,
)
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.records import RECORDS, Record, RecordWriter, read_parts
from mm1_pipeline.ground.files import whole_folder
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected

QUARANTINE = "quarantine.parquet"
TALLY = "tally.json"
STEPS = ("read", "check", "filter", "deduplicate")
"""Through which every record goes; what one keeps, the next reads."""

_TEXTS_AT_ONCE = 256
_HASHES_AT_ONCE = 1_024


@dataclass(frozen=True)
class PartitionTask:
    """One partition of one source, as it is sent to a worker."""

    name: str
    """Of the source."""
    config: IngestConfig
    folder: Path
    """Of the source's work."""
    number: int
    files: tuple[str, ...]
    label: str
    """For the progress."""
    shows_progress: bool
    decontamination: Path | None = None
    """The index of the evaluation data; None where there is none."""
    prepared: Path | None = None
    """What the partitions share, for readers that need it."""
    scorer: ScorerReference | None = None
    """Of captions; None where they are not scored."""

    @property
    def source(self) -> SourceConfig:
        """Parameters of the source."""
        return self.config.sources[self.name]

    def open(self) -> Source:
        """The source, with this partition's files."""
        files = open_files(self.source).subset(self.files)
        return Source(self.name, self.source, files, self.config.limits, self.prepared)

    def step(self, name: str) -> Path:
        """Folder of one step of this partition."""
        return self.folder / name / f"{self.number:05d}"


@dataclass
class Counts:
    """What became of the records and images of a partition."""

    records: Tally = field(default_factory=Tally)
    images: Tally = field(default_factory=Tally)
    steps: dict[str, Tally] = field(default_factory=dict)
    passed_over: Counter[Passed] = field(default_factory=Counter)
    """What lies in the files and is no record; not part of what is read."""

    def add(self, other: Counts) -> None:
        """Adds the counts of another partition or step."""
        self.records.add(other.records)
        self.images.add(other.images)
        self.passed_over += other.passed_over
        for name, tally in other.steps.items():
            self.steps.setdefault(name, Tally()).add(tally)

    def check(self) -> None:
        """Asserts that nothing was lost: in no step, and between none."""
        self.records.check("records")
        self.images.check("images")
        read = self.records.read
        for name in STEPS:
            tally = self.steps[name]
            tally.check(name)
            assert tally.read == read, (name, tally, read)
            read = tally.kept
        assert read == self.records.kept

    def write(self, path: Path) -> None:
        """Writes the counts as JSON."""
        parts = {"records": self.records, "images": self.images, **self.steps}
        content = {
            "passed_over": passed_over_to_json(self.passed_over),
            **{name: tally.to_json() for name, tally in parts.items()},
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Counts:
        """Reads what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        passed = Counter({Passed(name): n for name, n in content.pop("passed_over").items()})
        parts = {name: Tally.from_json(counts) for name, counts in content.items()}
        return cls(parts.pop("records"), parts.pop("images"), parts, passed)


def count_passed_over(found: Iterator[Found], passed_over: Counter[Passed]) -> Iterator[Item]:
    """Gives the records among what a reader found, and counts the rest."""
    for item in found:
        if isinstance(item, PassedOver):
            passed_over[item.why] += item.count
        else:
            yield item


def passed_over_to_json(passed_over: Counter[Passed]) -> dict[str, int]:
    """The counts with the commonest first."""
    ordered = sorted(passed_over.items(), key=lambda item: (-item[1], item[0].value))
    return {why.value: count for why, count in ordered}


def finish_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """Fills a folder under another name and moves it to its place; does nothing if it is there.

    Args:
        folder: to be made.
        write: gets the folder to fill, which is empty.
    """
    if folder.exists():
        return
    with whole_folder(folder) as unfinished:
        write(unfinished)


def index_partition(task: PartitionTask) -> int:
    """Before the first step, for archives: where everything lies that pages may show.

    Returns:
        How many places there are.
    """
    from mm1_pipeline.corpus.readers.warc_index import load_places, save_places, scan_archives

    def write(folder: Path) -> None:
        source = task.open()
        save_places(folder, scan_archives(source, source.files))

    finish_folder(task.step("index"), write)
    return len(load_places(task.step("index"))[0])


def read_partition(task: PartitionTask) -> int:
    """First step: every record alone.

    Returns:
        How many records were read.
    """
    finish_folder(task.step("read"), lambda folder: _read_source(task, folder))
    return Counts.read(task.step("read") / TALLY).records.read


def judge_partition(task: PartitionTask) -> int:
    """Second step: the keys by which repetitions are found.

    Returns:
        How many records have keys.
    """
    finish_folder(task.step("judge"), lambda folder: _judge_partition(task, folder))
    return pq.read_metadata(task.step("judge") / "names.parquet").num_rows


def write_partition(task: PartitionTask) -> int:
    """Third step: the verdicts are carried out.

    Returns:
        How many records are kept.
    """
    finish_folder(task.step("write"), lambda folder: _write_kept(task, folder))
    return Counts.read(task.step("write") / TALLY).records.kept


def _read_source(task: PartitionTask, folder: Path) -> None:
    source, settings = task.open(), task.source
    passed_over: Counter[Passed] = Counter()
    records = count_passed_over(read_source(source), passed_over)
    items = itertools.islice(records, settings.max_records)
    if task.shows_progress:
        items = track_source(items, task.label, source.files, settings.max_records)
    is_training = settings.split == SourceSplit.TRAIN
    decontaminator = None
    if is_training and task.decontamination is not None:
        # Fine-tuning learns from the training splits of benchmarks, which shots are drawn from.
        with_shots = settings.kind != RecordKind.CONVERSATION
        decontaminator = _open_decontaminator(task.decontamination, with_shots=with_shots)
    hashes_wanted = _wants_hashes(task)
    checker = ImageChecker(settings.image_rules, decontaminator, hashes_wanted)
    counts = Counts(steps={"read": Tally(), "check": Tally()}, passed_over=passed_over)
    order = itertools.count(task.number * PARTITION_STRIDE)
    with (
        Quarantine(folder / QUARANTINE, task.name) as quarantine,
        RecordWriter(folder / RECORDS, task.config.records_per_file, temporary=True) as writer,
        TableWriter(folder / "images.parquet", IMAGE_SCHEMA) as images,
        TableWriter(folder / "perceptual_hashes.parquet", HASH_SCHEMA) as hashes,
    ):
        counts.records, counts.images = quarantine.records, quarantine.images
        for item, verdict, stored in _check_items(
            items, task, checker, hashes_wanted=hashes_wanted
        ):
            quarantine.records.read += 1
            if isinstance(item, RejectedRecord):
                quarantine.reject_record(item.key, item.why)
                counts.steps["read"].reject(item.why)
                continue
            counts.steps["read"].keep()
            assert verdict is not None, "only what is no record has none"
            quarantine.images.read += verdict.num_images
            account(verdict, item.key, quarantine, counts.steps["check"])
            if verdict.record is None:
                continue
            number = next(order)
            writer.write(verdict.record)
            for segment in verdict.record.segments:
                if segment.image is not None:
                    image = verdict.record.images[segment.image]
                    images.add(number, image.url, image.sha256)
            if hashes_wanted:
                hashes.add(number, stored)
    counts.write(folder / TALLY)


def _check_items(
    items: Iterator[RawRecord | RejectedRecord],
    task: PartitionTask,
    checker: ImageChecker,
    *,
    hashes_wanted: bool,
) -> Iterator[Checked]:
    """Applies the rules that look at one record alone, the dearest last."""
    checked = _check_alone(items, task, checker, hashes_wanted=hashes_wanted)
    if task.scorer is None:
        return checked
    return reject_low_scores(checked, open_scorer(task.scorer), task.scorer.config.threshold)


def _check_alone(
    items: Iterator[RawRecord | RejectedRecord],
    task: PartitionTask,
    checker: ImageChecker,
    *,
    hashes_wanted: bool,
) -> Iterator[Checked]:
    limit = task.config.limits.max_record_bytes
    for item in items:
        if isinstance(item, RejectedRecord):
            yield Checked(item, None, None)
            continue
        verdict = check_record(item, task.name, task.source, checker, limit)
        record = verdict.record if hashes_wanted else None
        stored = None if record is None else checker.hash_of(record.images[0])
        yield Checked(item, verdict, stored)


@lru_cache(1)
def _open_decontaminator(folder: Path, *, with_shots: bool) -> Decontaminator:
    return Decontaminator(folder, with_shots=with_shots)


def _wants_hashes(task: PartitionTask) -> bool:
    is_pair = task.source.kind == RecordKind.CAPTION and task.source.split == SourceSplit.TRAIN
    return is_pair and task.config.deduplication_of(task.source).perceptual


def judged(task: PartitionTask, *, with_bytes: bool) -> Iterator[tuple[Record, FilterResult]]:
    """The records of a partition, with what the rules that need the whole source make of them."""
    folder = task.folder / "frequent_images"
    frequent = FrequentImages(
        read_frequent(folder / "url", task.number), read_frequent(folder / "sha256", task.number)
    )
    for record in read_parts(task.step("read") / RECORDS, with_bytes=with_bytes):
        yield record, judge_record(record, task.source, frequent)


def _judge_partition(task: PartitionTask, folder: Path) -> None:
    methods = task.config.deduplication_of(task.source)
    kind = task.source.kind
    near = methods.near if kind in (RecordKind.INTERLEAVED, RecordKind.TEXT) else None
    keys_of_pictures = _read_hash_keys(task.step("read") / "perceptual_hashes.parquet")
    waiting: list[tuple[int, str]] = []
    with (
        TableWriter(folder / "names.parquet", NAME_SCHEMA) as names,
        TableWriter(folder / "exact.parquet", KEY_SCHEMA) as exact,
        TableWriter(folder / "captions.parquet", KEY_SCHEMA) as captions,
        TableWriter(folder / "near.parquet", KEY_SCHEMA) as nearly,
        TableWriter(folder / "pictures.parquet", KEY_SCHEMA) as pictures,
    ):

        def hash_texts() -> None:
            assert near is not None
            keys = min_hash_keys([text for _, text in waiting], near)
            for (order, _), row in zip(waiting, keys.tolist(), strict=True):
                for key in row:
                    nearly.add(order, key)
            waiting.clear()

        start = task.number * PARTITION_STRIDE
        for order, (record, verdict) in enumerate(judged(task, with_bytes=False), start=start):
            hash_keys = next(keys_of_pictures, ())
            if verdict.record is None:
                continue
            kept = verdict.record
            names.add(order, record.key)
            exact.add(order, int.from_bytes(kept.content_hash()[:8], "little") >> 1)
            if kind == RecordKind.CAPTION:
                captions.add(order, text_key(" ".join(s.text or "" for s in kept.segments)))
            for key in hash_keys:
                pictures.add(order, key)
            if near is not None:
                waiting.append((order, "\n".join(s.text for s in kept.segments if s.text)))
                if len(waiting) >= _TEXTS_AT_ONCE:
                    hash_texts()
        if waiting:
            hash_texts()


def _read_hash_keys(path: Path) -> Iterator[Sequence[int]]:
    """The keys of every picture of a partition; none for a record without a perceptual hash."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["perceptual_hash"], batch_size=_HASHES_AT_ONCE):
            hashes = batch["perceptual_hash"].to_pylist()
            keys = iter(lookup_keys([one for one in hashes if one is not None]))
            yield from (next(keys) if one is not None else () for one in hashes)


def _write_kept(task: PartitionTask, folder: Path) -> None:
    repeats = read_repeats(task.folder / "repeats" / "found", task.number)
    counts = Counts(steps={"filter": Tally(), "deduplicate": Tally()})
    with (
        Quarantine(folder / QUARANTINE, task.name) as quarantine,
        RecordWriter(folder / RECORDS, task.config.records_per_file) as writer,
    ):
        counts.records, counts.images = quarantine.records, quarantine.images
        for place, (record, verdict) in enumerate(judged(task, with_bytes=True)):
            if verdict.record is None:
                account(verdict, record.key, quarantine, counts.steps["filter"])
                continue
            counts.steps["filter"].keep()
            if place in repeats:
                reason, original = repeats[place]
                why = Rejected(reason, f"repeats {original}" if original else "")
                verdict = FilterResult(None, why, verdict.dropped, verdict.num_images)
            account(verdict, record.key, quarantine, counts.steps["deduplicate"])
            if verdict.record is not None:
                writer.write(verdict.record)
                quarantine.records.kept += 1
                dropped = sum(image.count for image in verdict.dropped)
                quarantine.images.kept += verdict.num_images - dropped
    counts.write(folder / TALLY)


def account(verdict: FilterResult, key: str, quarantine: Quarantine, step: Tally) -> None:
    """Lists what a verdict rejects; the images of a rejected record share its fate."""
    left = verdict.num_images
    for image in verdict.dropped:
        listed = image.why is not verdict.why
        quarantine.reject_image(key, image.why, listed=listed, count=image.count, url=image.url)
        left -= image.count
    if verdict.why is None:
        step.keep()
        return
    step.reject(verdict.why)
    quarantine.reject_record(key, verdict.why)
    if left:
        why = Rejected(Reason.RECORD_REJECTED)
        quarantine.reject_image(key, why, listed=False, count=left)
