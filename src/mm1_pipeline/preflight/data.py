"""Checks of what brings data: sources, second captions, the tokenizer, downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mm1_pipeline.config.ingest import (
    IngestConfig,
    ReaderLimits,
    RecordKind,
    SourceConfig,
    SourceSplit,
)
from mm1_pipeline.preflight.run import Check, Run, is_installed, missing, refused, unknown


def check_ingest(part: Callable[[IngestConfig], IngestConfig]) -> Check:
    """Every raw source of a part has files of its format, and columns of the configured names."""
    return partial(_check_ingest, part)


def _check_ingest(part: Callable[[IngestConfig], IngestConfig], run: Run) -> Iterator[str]:
    from mm1_pipeline.corpus.preflight import source_problems
    from mm1_pipeline.corpus.recognition import content_problems, record_problems
    from mm1_pipeline.evaluation.captioning.scorers import load_scorer

    config = part(run.get("ingest"))
    for name, source in config.sources.items():
        key = name, source, config.limits

        def look(key: tuple[str, SourceConfig, ReaderLimits] = key) -> list[str]:
            found = content_problems(*key) or source_problems(*key, load_scorer)[0]
            return found or record_problems(*key)

        found = run.once(key, look)
        yield from found
        path = f"ingest.sources.{name}.image_path"
        if source.image_path is not None and not any(path in text for text in found):
            yield from missing(path, source.image_path, "the folder of its images")
    if config.engine == "ray" and not is_installed("ray"):
        yield (
            "ingest.engine: found ray, which is not installed, expected native, or the extra `ray`."
        )


def check_synthesis(run: Run) -> Iterator[str]:
    """The sources exist, and so does everything that their captions are written with."""
    config, ingest = run.get("synthesis"), run.get("ingest")
    if not config.sources:
        return
    if ingest is not None and "ingest_pretraining" in run.nodes:
        captions = [
            name
            for name, source in ingest.sources.items()
            if source.kind == RecordKind.CAPTION and source.split == SourceSplit.TRAIN
        ]
        for name in config.sources:
            if name not in captions:
                yield unknown("synthesis.sources", name, captions, "caption sources for training")
        if config.name in ingest.sources:
            yield (
                f"synthesis.name: found {config.name!r}, which is a source of `ingest`, expected "
                "a name of its own."
            )
    models = [("local", config.local)] if config.writer == "local" else []
    models += [("captioner", config.captioner)] if "caption" in config.concepts else []
    for name, model in models:
        for field in ("checkpoint", "tokenizer", "shards"):
            if place := getattr(model, field, None):
                yield from missing(
                    f"synthesis.{name}.{field}", place, "what its model is read from"
                )
    if "text" in config.concepts and not is_installed("rapidocr"):
        yield (
            "synthesis.concepts: found text, whose reader is not installed, expected others, or "
            "the extra `ocr`."
        )


def check_tokenizer(run: Run) -> Iterator[str]:
    """The user's file is a tokenizer, and the vocabulary has room for it; so has the decoder."""
    from mm1_pipeline.streams.tokenizer import Tokenizer, check_vocabulary

    config, decoder = run.get("tokenizer"), run.get("model.decoder")
    size = config.vocab_size
    if config.file is not None:
        if problems := missing("tokenizer.file", config.file, "a tokenizer.json, or its folder"):
            yield from problems
            return
        found: list[Tokenizer] = []
        yield from refused("tokenizer.file", lambda: found.append(Tokenizer.load(config.file)))
        if not found:
            return
        size = found[0].vocab_size
        yield from refused("tokenizer.vocab_size", lambda: check_vocabulary(config, found[0]))
    else:
        yield from refused("tokenizer.vocab_size", lambda: check_vocabulary(config))
    if decoder is not None and decoder.vocab_size < size:
        yield (
            f"model.decoder.vocab_size: found {decoder.vocab_size}, expected at least {size}, the "
            f"tokens that {config.file or 'the tokenizer (tokenizer.vocab_size)'} may have."
        )


def check_download(run: Run) -> Iterator[str]:
    """There are lists."""
    lists = run.get("download").lists
    if lists is None:
        yield (
            "download.lists: found none, expected a Parquet or TSV file of image addresses and "
            "captions, or a folder of such files."
        )
    else:
        yield from missing(
            "download.lists", lists, "a file of addresses, or a folder of such files"
        )
