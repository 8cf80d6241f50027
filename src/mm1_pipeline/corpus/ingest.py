"""Raw sources to clean records, source by source, in memory that does not grow with their size.

A source passes three times over the disk:

1. read, decode and check every record alone, and set it aside (`spool/`);
2. look at the hashes only: which images occur all over the source, which records repeat;
3. write what is kept, in the order it was read.

A finished source is marked as such, so that a run that was interrupted goes on with the next.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from mm1_pipeline.config.ingest import IngestConfig, SourceConfig, SourceSplit
from mm1_pipeline.corpus.deduplication import (
    HASH_SCHEMA,
    NO_DUPLICATES,
    Duplicates,
    TableWriter,
    find_duplicates,
    find_frequent,
)
from mm1_pipeline.corpus.filters import (
    Furniture,
    ImageChecker,
    Verdict,
    check_record,
    judge_record,
)
from mm1_pipeline.corpus.preflight import check_sources
from mm1_pipeline.corpus.progress import track_source
from mm1_pipeline.corpus.quarantine import Quarantine, Reason, Rejected, Tally
from mm1_pipeline.corpus.readers.base import RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.records import RECORDS, RecordWriter, read_parts, write_sources

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"

_WORK = ".ingest"
_COMPLETED = "completed.json"
_SPOOL = "spool"
_LAYOUT = 1
"""Raise it when the files of a source change their layout, so that none is reused."""
_IMAGE_SCHEMA = pa.schema([("url", pa.string()), ("sha256", pa.string())])


def ingest(
    config: IngestConfig, output_dir: Path, *, work_dir: Path | None = None
) -> dict[str, Any]:
    """Reads, filters and de-duplicates every source; what is dropped is listed and counted.

    Source: MM1, Appendix on interleaved documents (unconfirmed values). Deviation: MM1 looks for
    frequent images and duplicates over all its documents; here each source is on its own.

    Args:
        config: the sources and the rules.
        output_dir: gets `records/`, `quarantine/` and `sources.json`.
        work_dir: where finished sources wait until all are; a run that finds them there does not
            read them again. None takes a folder inside `output_dir`.

    Returns:
        The report: per source read, kept and rejected records and images, and their totals.

    Raises:
        ValueError: paths or columns of sources do not fit; all are named at once.
    """
    check_sources(config)
    work_dir = work_dir or output_dir / _WORK
    reports: dict[str, Any] = {}
    for name, source in config.sources.items():
        folder = work_dir / name
        reports[name] = _completed_report(folder, name, config)
        if reports[name] is None:
            reports[name] = _ingest_source(name, source, config, folder)
        else:
            logger.info("%s: finished by an earlier run, kept", name)
        _warn_if_little_is_kept(name, reports[name])
    for name in config.sources:
        _publish(work_dir / name, name, output_dir)
    if work_dir == output_dir / _WORK:
        shutil.rmtree(work_dir)
    write_sources(output_dir, config.sources)
    return {"sources": reports, "totals": _totals(reports)}


def _ingest_source(
    name: str, source: SourceConfig, config: IngestConfig, folder: Path
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    spool = folder / _SPOOL
    spool.mkdir(parents=True)
    with Quarantine(folder / f"{QUARANTINE}.parquet", name) as quarantine:
        _read_and_check(name, source, config, spool, quarantine)
        furniture = _find_furniture(source, spool)
        duplicates = _find_duplicates(source, config, spool, furniture)
        _write_kept(source, config, spool, folder / RECORDS, quarantine, furniture, duplicates)
    shutil.rmtree(spool)
    report = _report(source, quarantine)
    content = {"fingerprint": _fingerprint(name, config), "report": report}
    temporary = folder / f"{_COMPLETED}.tmp"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(folder / _COMPLETED)
    return report


def _read_and_check(
    name: str, source: SourceConfig, config: IngestConfig, spool: Path, quarantine: Quarantine
) -> None:
    """First pass: every record alone."""
    files = open_files(source)
    items = read_source(Source(name, source, files, config.limits))
    items = itertools.islice(items, source.max_records)
    checker = ImageChecker(source.image_rules)
    with (
        RecordWriter(spool / RECORDS, config.records_per_file) as writer,
        TableWriter(spool / "images.parquet", _IMAGE_SCHEMA) as images,
    ):
        for item in track_source(items, name, files, source.max_records):
            quarantine.records.read += 1
            if isinstance(item, RejectedRecord):
                quarantine.reject_record(item.key, item.why)
                continue
            verdict = check_record(item, name, source, checker, config.limits.max_record_bytes)
            quarantine.images.read += verdict.num_images
            _account(verdict, item.key, quarantine)
            if verdict.record is None:
                continue
            writer.write(verdict.record)
            for segment in verdict.record.segments:
                if segment.image is not None:
                    image = verdict.record.images[segment.image]
                    images.add(image.url, image.sha256)


def _find_furniture(source: SourceConfig, spool: Path) -> Furniture:
    """Second pass, images: what occurs all over the source."""
    allowed = source.image_rules.max_occurrences
    if allowed is None:
        return Furniture()
    path = spool / "images.parquet"
    return Furniture(find_frequent(path, "url", allowed), find_frequent(path, "sha256", allowed))


def _find_duplicates(
    source: SourceConfig, config: IngestConfig, spool: Path, furniture: Furniture
) -> Duplicates:
    """Second pass, records: what repeats an earlier record once furniture is gone."""
    if source.split == SourceSplit.EVALUATION or not config.deduplication.exact:
        return NO_DUPLICATES
    path = spool / "hashes.parquet"
    with TableWriter(path, HASH_SCHEMA) as hashes:
        for position, record in enumerate(read_parts(spool / RECORDS, with_bytes=False)):
            verdict = judge_record(record, source, furniture)
            if verdict.record is not None:
                hashes.add(position, verdict.record.content_hash())
    return find_duplicates(config.deduplication, path)


def _write_kept(
    source: SourceConfig,
    config: IngestConfig,
    spool: Path,
    output: Path,
    quarantine: Quarantine,
    furniture: Furniture,
    duplicates: Duplicates,
) -> None:
    """Third pass: the verdicts are carried out."""
    originals: dict[int, str] = {}
    with RecordWriter(output, config.records_per_file) as writer:
        for position, record in enumerate(read_parts(spool / RECORDS)):
            if duplicates.is_original(position):
                originals[position] = record.key
            verdict = judge_record(record, source, furniture)
            original = duplicates.original_of(position)
            if verdict.record is not None and original is not None:
                why = Rejected(Reason.DUPLICATE, f"repeats {originals[original]}")
                verdict = Verdict(None, why, verdict.dropped, verdict.num_images)
            _account(verdict, record.key, quarantine)
            if verdict.record is not None:
                writer.write(verdict.record)
                quarantine.records.kept += 1
                dropped = sum(image.count for image in verdict.dropped)
                quarantine.images.kept += verdict.num_images - dropped


def _account(verdict: Verdict, key: str, quarantine: Quarantine) -> None:
    """Lists what a verdict rejects; the images of a rejected record share its fate."""
    left = verdict.num_images
    for image in verdict.dropped:
        listed = image.why is not verdict.why
        quarantine.reject_image(key, image.why, listed=listed, count=image.count, url=image.url)
        left -= image.count
    if verdict.why is not None:
        quarantine.reject_record(key, verdict.why)
        if left:
            why = Rejected(Reason.RECORD_REJECTED)
            quarantine.reject_image(key, why, listed=False, count=left)


def _publish(folder: Path, name: str, output_dir: Path) -> None:
    """Moves a finished source to its place; without its mark half a move is never trusted."""
    records, quarantine = output_dir / RECORDS / name, output_dir / QUARANTINE / f"{name}.parquet"
    shutil.rmtree(records, ignore_errors=True)
    for path in (records, quarantine):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / _COMPLETED).unlink()
    shutil.move(folder / RECORDS, records)
    shutil.move(folder / f"{QUARANTINE}.parquet", quarantine)
    folder.rmdir()


def _completed_report(folder: Path, name: str, config: IngestConfig) -> dict[str, Any] | None:
    """The report of a source that an earlier run finished with the same parameters and files."""
    try:
        content = json.loads((folder / _COMPLETED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content["report"] if content["fingerprint"] == _fingerprint(name, config) else None


def _fingerprint(name: str, config: IngestConfig) -> str:
    """What the files of a finished source depend on, as far as it is seen without reading."""
    source = config.sources[name]
    content = {
        "layout": _LAYOUT,
        "name": name,
        "source": asdict(source),
        "deduplication": asdict(config.deduplication),
        "limits": asdict(config.limits),
        "records_per_file": config.records_per_file,
        "files": open_files(source).listing(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _report(source: SourceConfig, quarantine: Quarantine) -> dict[str, Any]:
    quarantine.records.check("records")
    quarantine.images.check("images")
    return {
        "kind": source.kind.value,
        "format": source.format.value,
        "split": source.split.value,
        **quarantine.records.to_json(),
        "images": quarantine.images.to_json(),
    }


def _totals(reports: dict[str, Any]) -> dict[str, Any]:
    records, images = Tally(), Tally()
    for report in reports.values():
        for tally, part in ((records, report), (images, report["images"])):
            tally.read += part["read"]
            tally.kept += part["kept"]
            tally.rejected += Counter({Reason(k): n for k, n in part["rejected"].items()})
    return {**records.to_json(), "images": images.to_json()}


def _warn_if_little_is_kept(name: str, report: dict[str, Any]) -> None:
    if report["kept"] * 2 >= report["read"] > 0:
        return
    commonest = next(iter(report["rejected"]), "none")
    logger.warning(
        "%s: kept %d of %d records; the commonest reason is %s. Each one is listed in "
        "quarantine/%s.parquet.",
        name,
        report["kept"],
        report["read"],
        commonest,
        name,
    )
