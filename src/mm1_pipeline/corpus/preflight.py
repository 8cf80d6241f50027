"""Looks at every source before anything is read, so that a wrong path costs seconds, not hours."""

from __future__ import annotations

from mm1_pipeline.config.ingest import IngestConfig, SourceConfig, SourceFormat
from mm1_pipeline.config.source_files import FORMAT_FILES
from mm1_pipeline.corpus.caption_scores import LoadScorer, ScorerReference
from mm1_pipeline.corpus.files import ImageFolder, SourceFiles, whole_suffix
from mm1_pipeline.corpus.readers import (
    image_parquet,
    interleaved_parquet,
    jsonl,
    parquet,
    synth_dog,
)
from mm1_pipeline.corpus.readers.base import Source, is_files_fault
from mm1_pipeline.corpus.readers.dispatch import open_files
from mm1_pipeline.corpus.text_rules import read_profanities

_WITH_IMAGES_IN_THEM = frozenset(
    {
        SourceFormat.IMG2DATASET,
        SourceFormat.IMAGE_PARQUET,
        SourceFormat.INTERLEAVED_PARQUET,
        SourceFormat.SYNTH_DOG,
    }
)
_FETCH_FIRST = (
    "Lists of addresses (the TSV of CC3M and CC12M, MMC4's JSON lines, LAION's Parquet) hold no "
    "images: fetch them first with the stage `download`."
)


def check_sources(
    config: IngestConfig, load_scorer: LoadScorer | None = None
) -> dict[str, ScorerReference]:
    """Checks that every source has files of its format, and columns of the configured names.

    Args:
        config: the sources.
        load_scorer: gives what sources with a `clip_score` are scored by.

    Returns:
        Scorers that were loaded once, by the sources that want one.

    Raises:
        ValueError: names all problems at once, each by its parameter.
    """
    problems = [
        problem
        for name, source in config.sources.items()
        for problem in (
            *_source_problems(name, source, config),
            *_list_problems(f"ingest.sources.{name}.text.profanity_list", source),
        )
    ]
    scorers: dict[str, ScorerReference] = {}
    for name, source in config.sources.items():
        if source.clip_score is None:
            continue
        assert load_scorer is not None, "sources with a clip_score need load_scorer"
        try:
            identity = load_scorer(source.clip_score).identity
        except (OSError, ValueError) as error:
            problems.append(f"ingest.sources.{name}.clip_score: {error}")
        else:
            scorers[name] = ScorerReference(load_scorer, source.clip_score, identity)
    if problems:
        raise ValueError("\n".join(problems))
    return scorers


def _source_problems(name: str, config: SourceConfig, whole: IngestConfig) -> list[str]:
    parameter = f"ingest.sources.{name}.path"
    patterns = FORMAT_FILES[config.format]
    expected = f"expected {' and '.join(patterns)} ({config.format.value})"
    try:
        files = open_files(config)
    except FileNotFoundError:
        return [f"{parameter}: found nothing at {config.path!r}, {expected}."]
    except (ImportError, OSError, ValueError) as error:
        return [
            f"{parameter}: found {config.path!r}, which cannot be listed "
            f"({type(error).__name__}: {error}), {expected}."
        ]
    if packed := _packed_archives(config, files):
        return [
            f"{parameter}: found {', '.join(packed[:3])}{', ...' if len(packed) > 3 else ''} in "
            f"{config.path!r}, {expected}: unpack them (gunzip, unzstd), for archives are not read "
            "from front to end."
        ]
    if not len(files):
        match = "" if config.files == "*" else f" that match {config.files!r}"
        hint = f" {_FETCH_FIRST}" if config.format in _WITH_IMAGES_IN_THEM else ""
        return [f"{parameter}: found no such files{match} in {config.path!r}, {expected}.{hint}"]
    return _content_problems(Source(name, config, files, whole.limits), expected)


def _packed_archives(config: SourceConfig, files: SourceFiles) -> list[str]:
    if config.format != SourceFormat.IMG2DATASET:
        return []
    packed = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
    return [file.name for file in files.unread if whole_suffix(file.name) in packed]


def _list_problems(parameter: str, config: SourceConfig) -> list[str]:
    path = config.text_rules.profanity_list
    if path is None:
        return []
    try:
        read_profanities(path)
    except (ImportError, OSError, ValueError) as error:
        return [
            f"{parameter}: found {path!r}, which cannot be read ({type(error).__name__}: {error}), "
            "expected a text file with one word or phrase a line."
        ]
    return []


def _content_problems(source: Source, expected: str) -> list[str]:
    """What the first readable file of a source shows; of tables, all their footers."""
    match source.config.format:
        case SourceFormat.IMAGE_PARQUET:
            return parquet.misfits(source, image_parquet.problems)
        case SourceFormat.INTERLEAVED_PARQUET:
            return parquet.misfits(source, interleaved_parquet.problems)
        case SourceFormat.SYNTH_DOG:
            return parquet.misfits(source, synth_dog.problems)
        case SourceFormat.JSONL:
            problems = jsonl.problems
        case SourceFormat.VQA_V2:
            return _missing_halves(source, expected) + _image_folder_problems(source)
        case SourceFormat.IMG2DATASET | SourceFormat.WARC_HTML:
            return []
        case _:
            return _image_folder_problems(source)
    for file in source.files:
        try:
            return problems(source, file)
        except Exception as error:
            if not is_files_fault(error):
                raise
            continue  # a damaged file is no wrong parameter; reading puts it into quarantine
    return []


def _missing_halves(source: Source, expected: str) -> list[str]:
    names = [file.name.lower() for file in source.files]
    missing = [half for half in ("questions", "annotations") if not any(half in n for n in names)]
    place = f"in {source.config.path!r}, {expected}"
    return [f"{source.parameter('path')}: found no file of {half} {place}." for half in missing]


def _image_folder_problems(source: Source) -> list[str]:
    path = source.config.image_path
    if path is None:
        return []
    try:
        ImageFolder(path, source.config.images.max_bytes)
    except (ImportError, OSError, ValueError):
        return [
            f"{source.parameter('image_path')}: found nothing at {path!r}, expected the folder of "
            "the images."
        ]
    return []
