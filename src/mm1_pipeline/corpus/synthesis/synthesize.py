"""Writes a source of synthetic captions: the images of others, each with a new sentence."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_pipeline.config.ingest import RecordKind, SourceSplit
from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.quarantine import Quarantine, Reason, Rejected
from mm1_pipeline.corpus.records import (
    RECORDS,
    SOURCES,
    SYNTHETIC_OF,
    Record,
    RecordWriter,
    Segment,
    SegmentType,
    pretraining_sources,
    read_records,
)
from mm1_pipeline.corpus.synthesis.cache import CachedWriter, content_hash
from mm1_pipeline.corpus.synthesis.concepts import detect_concepts
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, CaptionWriter
from mm1_pipeline.corpus.work_progress import WorkProgress

logger = logging.getLogger(__name__)

_CHUNK = 128
_RECORDS_PER_FILE = 10_000


def synthesize(
    config: SynthesisConfig, writer: CaptionWriter, records_dir: Path, output_dir: Path
) -> dict[str, Any]:
    """Gives the images of the configured sources a second caption each.

    Source: MM1, Data (VeCap). Deviation: the paper's captions come from VeCap's own pipeline; here
    writer and concepts are chosen by parameters.

    Args:
        config: Sources, concepts, cache.
        writer: Writes the captions.
        records_dir: The artifact of `ingest`.
        output_dir: Gets an artifact of records with one source, or with none where no sources are
            configured.

    Returns:
        The report: records read, kept and rejected by reason, and the writer's provenance.

    Raises:
        ValueError: A configured source is none of captions for training.
    """
    _check_sources(config, records_dir)
    (output_dir / RECORDS).mkdir(parents=True, exist_ok=True)
    content = {}
    if config.sources:
        content[config.name] = {
            "kind": RecordKind.CAPTION.value,
            "split": SourceSplit.TRAIN.value,
        }
    report = {"sources": list(config.sources), "name": config.name, **writer.provenance}
    if config.sources:
        report |= _write(config, writer, records_dir, output_dir)
    text = json.dumps(content, indent=2) + "\n"
    (output_dir / SOURCES).write_text(text, encoding="utf-8")
    return report


def _check_sources(config: SynthesisConfig, records_dir: Path) -> None:
    known = pretraining_sources(records_dir)
    captions = [name for name, kind in known.items() if kind == RecordKind.CAPTION]
    for name in config.sources:
        if name not in captions:
            raise ValueError(
                f"synthesis.sources: found {name!r}, expected caption sources for training: "
                f"{', '.join(captions) or 'there are none'}."
            )
    if config.sources and config.name in known:
        raise ValueError(
            f"synthesis.name: found {config.name!r}, which is a source of `ingest`; choose another."
        )


def _write(
    config: SynthesisConfig, writer: CaptionWriter, records_dir: Path, output_dir: Path
) -> dict[str, Any]:
    records = itertools.chain.from_iterable(
        itertools.islice(read_records(records_dir, source), config.max_records)
        for source in config.sources
    )
    total = sum(_num_records(records_dir, source, config.max_records) for source in config.sources)
    cache = None if config.cache is None else Path(config.cache)
    quarantine_file = output_dir / "quarantine" / f"{config.name}.parquet"
    with (
        CachedWriter(writer, cache) as cached,
        RecordWriter(output_dir / RECORDS / config.name, _RECORDS_PER_FILE) as output,
        Quarantine(quarantine_file, config.name) as quarantine,
        WorkProgress("synthesize captions", total, "captions") as progress,
    ):
        while chunk := list(itertools.islice(records, _CHUNK)):
            for key, found in _rewrite(config, cached, chunk):
                quarantine.records.read += 1
                if isinstance(found, Rejected):
                    quarantine.reject_record(key, found)
                else:
                    output.write(found)
                    quarantine.records.kept += 1
            progress.advance(len(chunk))
    quarantine.records.check("records")
    logger.info("%d captions were asked for, the others were known.", cached.num_asked)
    return quarantine.records.to_json()


def _rewrite(
    config: SynthesisConfig, writer: CachedWriter, records: list[Record]
) -> Iterator[tuple[str, Record | Rejected]]:
    requests = [_request(config, record) for record in records]
    captions = writer.write(requests)
    for record, request, caption in zip(records, requests, captions, strict=True):
        key = f"{record.source}/{record.key}"
        if not isinstance(caption, Rejected):
            caption = _check_caption(caption, config.max_characters)
        if isinstance(caption, Rejected):
            yield key, caption
            continue
        digest = content_hash(writer.provenance, writer.prompt(request))
        provenance = {
            **writer.provenance,
            "prompt_sha256": digest,
            "concepts": dict(request.concepts),
            "alt_text": request.alt_text,
        }
        origin = {"source": record.source, "key": record.key}
        metadata = {**record.metadata, SYNTHETIC_OF: origin, "synthetic": provenance}
        segments = (Segment.of_image(0), Segment.of_text(caption))
        yield (
            key,
            Record(config.name, key, RecordKind.CAPTION, segments, record.images, (), metadata),
        )


def _request(config: SynthesisConfig, record: Record) -> CaptionRequest:
    texts = [s.text or "" for s in record.segments if s.type == SegmentType.TEXT]
    image = open_image(record.images[0].bytes)
    concepts = detect_concepts(image, config.concepts)
    return CaptionRequest(f"{record.source}/{record.key}", " ".join(texts).strip(), concepts)


def _check_caption(text: str, max_characters: int) -> str | Rejected:
    """A caption on one line, or why it is none."""
    text = " ".join(text.split()).strip('"')
    if not text:
        return Rejected(Reason.TEXT_MISSING, "found an empty caption")
    if len(text) > max_characters:
        found = f"found {len(text)} characters, allowed {max_characters}"
        return Rejected(Reason.TOO_MANY_CHARACTERS, found)
    return text


def _num_records(records_dir: Path, source: str, limit: int | None) -> int:
    import pyarrow.parquet as pq

    files = (Path(records_dir) / RECORDS / source).glob("part-*.parquet")
    number = sum(pq.read_metadata(file).num_rows for file in files)
    return number if limit is None else min(number, limit)
