"""Writes a source of synthetic captions: the images of others, each with a new sentence."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm1_pipeline.config.ingest import RecordKind, SourceSplit
from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.corpus.quarantine import Quarantine
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
from mm1_pipeline.corpus.synthesis.cache import (
    AnswerStore,
    CachedConcepts,
    CachedWriter,
    content_hash,
)
from mm1_pipeline.corpus.synthesis.concepts import ConceptSource, MeasuredConcepts
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, CaptionWriter
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.ground.rejects import Reason, Rejected

logger = logging.getLogger(__name__)

_CHUNK = 128
_RECORDS_PER_FILE = 10_000


def synthesize(
    config: SynthesisConfig,
    writer: CaptionWriter,
    records_dir: Path,
    output_dir: Path,
    concepts: Sequence[ConceptSource] = (MeasuredConcepts(),),
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
        concepts: Tell what `config.concepts` names.

    Returns:
        The report: records read, kept and rejected by reason, and the provenance of the writer
        and of concepts.

    Raises:
        ValueError: A configured source is none of captions for training, or nothing tells one of
            the concepts.
    """
    _check_sources(config, records_dir)
    told = {name for source in concepts for name in source.names}
    if missing := [name for name in config.concepts if name not in told]:
        raise ValueError(f"synthesis.concepts: found {missing}, which no source of concepts tells.")
    (output_dir / RECORDS).mkdir(parents=True, exist_ok=True)
    content = {}
    if config.sources:
        content[config.name] = {
            "kind": RecordKind.CAPTION.value,
            "split": SourceSplit.TRAIN.value,
        }
    report = {
        "sources": list(config.sources),
        "name": config.name,
        **writer.provenance,
        "concepts": _provenance(config, concepts),
    }
    if config.sources:
        report |= _write_records(config, writer, concepts, records_dir, output_dir)
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


def _provenance(
    config: SynthesisConfig, concepts: Sequence[ConceptSource]
) -> dict[str, dict[str, Any]]:
    """By name of the concept, for those that depend on more than the image."""
    return {
        name: source.provenance
        for source in concepts
        for name in source.names
        if source.provenance is not None and name in config.concepts
    }


def _write_records(
    config: SynthesisConfig,
    writer: CaptionWriter,
    concepts: Sequence[ConceptSource],
    records_dir: Path,
    output_dir: Path,
) -> dict[str, Any]:
    records = itertools.chain.from_iterable(
        itertools.islice(read_records(records_dir, source), config.max_records)
        for source in config.sources
    )
    total = sum(_num_records(records_dir, source, config.max_records) for source in config.sources)
    cache = None if config.cache is None else Path(config.cache)
    quarantine_file = output_dir / "quarantine" / f"{config.name}.parquet"
    with (
        AnswerStore(cache) as store,
        RecordWriter(output_dir / RECORDS / config.name, _RECORDS_PER_FILE) as output,
        Quarantine(quarantine_file, config.name) as quarantine,
        Progress("synthesize captions", unit="captions", total=total) as progress,
    ):
        cached = CachedWriter(writer, store)
        known = [CachedConcepts(source, store) for source in concepts]
        while chunk := list(itertools.islice(records, _CHUNK)):
            for key, found in _rewrite(config, cached, known, chunk):
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
    config: SynthesisConfig,
    writer: CachedWriter,
    concepts: Sequence[ConceptSource],
    records: list[Record],
) -> Iterator[tuple[str, Record | Rejected]]:
    requests = _requests(config, concepts, records)
    asked = [request for request in requests if not isinstance(request, Rejected)]
    captions = iter(writer.write(asked))
    depends_on = _provenance(config, concepts)
    for record, request in zip(records, requests, strict=True):
        key = f"{record.source}/{record.key}"
        if isinstance(request, Rejected):
            yield key, request
            continue
        caption = next(captions)
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
            **({"concept_sources": depends_on} if depends_on else {}),
            "alt_text": request.alt_text,
        }
        origin = {"source": record.source, "key": record.key}
        metadata = {**record.metadata, SYNTHETIC_OF: origin, "synthetic": provenance}
        segments = (Segment.of_image(0), Segment.of_text(caption))
        yield (
            key,
            Record(config.name, key, RecordKind.CAPTION, segments, record.images, (), metadata),
        )


def _requests(
    config: SynthesisConfig, concepts: Sequence[ConceptSource], records: list[Record]
) -> list[CaptionRequest | Rejected]:
    """What the writer is asked for each record, with the concepts in the configured order."""
    images = [record.images[0] for record in records]
    told = [source.detect(images) for source in concepts]
    requests: list[CaptionRequest | Rejected] = []
    for place, record in enumerate(records):
        found = [answers[place] for answers in told]
        words: dict[str, str] = {}
        failures = []
        for one in found:
            if isinstance(one, Rejected):
                failures.append(one)
            else:
                words |= one
        if failures:
            requests.append(failures[0])
            continue
        texts = [s.text or "" for s in record.segments if s.type == SegmentType.TEXT]
        ordered = {name: words[name] for name in config.concepts if name in words}
        key = f"{record.source}/{record.key}"
        requests.append(CaptionRequest(key, " ".join(texts).strip(), ordered))
    return requests


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
