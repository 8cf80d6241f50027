"""Looks at every source before anything is read, so that a wrong path costs seconds, not hours."""

from __future__ import annotations

from mm1_pipeline.config.ingest import IngestConfig, ReaderLimits, SourceConfig
from mm1_pipeline.config.source_formats import ImagePlace
from mm1_pipeline.corpus.caption_scores import LoadScorer, ScorerReference
from mm1_pipeline.corpus.files import whole_suffix
from mm1_pipeline.corpus.readers.base import Source
from mm1_pipeline.corpus.readers.dispatch import open_files, reader_of
from mm1_pipeline.corpus.text_rules import read_profanities

_FETCH_FIRST = (
    "Lists of addresses (the TSV of CC3M and CC12M, MMC4's JSON lines, LAION's Parquet) hold no "
    "images: fetch them first with the stage `download`."
)


def check_sources(
    config: IngestConfig, load_scorer: LoadScorer | None = None
) -> dict[str, ScorerReference]:
    """Checks that every source has files of its format, and columns of the configured names.

    Args:
        config: all sources, each with its format, path, columns and rules.
        load_scorer: gives what sources with a `clip_score` are scored by.

    Returns:
        Scorers that were loaded once, by the sources that want one.

    Raises:
        ValueError: names all problems at once, each by its parameter.
    """
    problems: list[str] = []
    scorers: dict[str, ScorerReference] = {}
    for name, source in config.sources.items():
        found, scorer = source_problems(name, source, config.limits, load_scorer)
        problems += found
        if scorer is not None:
            scorers[name] = scorer
    if problems:
        raise ValueError("\n".join(problems))
    return scorers


def source_problems(
    name: str, source: SourceConfig, limits: ReaderLimits, load_scorer: LoadScorer | None = None
) -> tuple[list[str], ScorerReference | None]:
    """What `check_sources` refuses of one source, each by its parameter, and its scorer.

    Args:
        name: of the source.
        source: its parameters.
        limits: of its readers.
        load_scorer: see `check_sources`.
    """
    problems = _file_problems(name, source, limits)
    problems += _list_problems(f"ingest.sources.{name}.text.profanity_list", source)
    if source.clip_score is None:
        return problems, None
    assert load_scorer is not None, "sources with a clip_score need load_scorer"
    try:
        identity = load_scorer(source.clip_score).identity
    except (OSError, ValueError) as error:
        return [*problems, f"ingest.sources.{name}.clip_score: {error}"], None
    return problems, ScorerReference(load_scorer, source.clip_score, identity)


def _file_problems(name: str, config: SourceConfig, limits: ReaderLimits) -> list[str]:
    parameter = f"ingest.sources.{name}.path"
    expected = config.format.expected
    try:
        files = open_files(config)
    except FileNotFoundError:
        return [f"{parameter}: found nothing at {config.path!r}, {expected}."]
    except (ImportError, OSError, ValueError) as error:
        return [
            f"{parameter}: found {config.path!r}, which cannot be listed "
            f"({type(error).__name__}: {error}), {expected}."
        ]
    packed = [
        file.name for file in files.unread if whole_suffix(file.name) in config.format.layout.packed
    ]
    if packed:
        return [
            f"{parameter}: found {', '.join(packed[:3])}{', ...' if len(packed) > 3 else ''} in "
            f"{config.path!r}, {expected}: unpack them (gunzip, unzstd), for archives are not read "
            "from front to end."
        ]
    if not len(files):
        match = "" if config.files == "*" else f" that match {config.files!r}"
        has_images_inside = config.format.layout.images == ImagePlace.INSIDE
        hint = f" {_FETCH_FIRST}" if has_images_inside else ""
        return [f"{parameter}: found no such files{match} in {config.path!r}, {expected}.{hint}"]
    return reader_of(config.format).problems(Source(name, config, files, limits))


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
