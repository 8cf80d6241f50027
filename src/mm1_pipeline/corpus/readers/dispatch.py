"""From a source's format to its reader."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator
from importlib import import_module

from mm1_pipeline.config.ingest import SourceConfig
from mm1_pipeline.config.source_files import has_images_beside, is_read
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import SourceFiles, whole_suffix
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.readers.base import Found, PassedOver, Reader, Source
from mm1_pipeline.ground.rejects import Passed


def reader_of(source_format: SourceFormat) -> Reader:
    """The reader of a format, out of the module that `config.source_formats` names.

    Loaded when it is needed: readers of pages bring libraries that others do without.
    """
    name = source_format.layout.reader
    # Written out, so that staleness, which imports nothing, sees what may be meant.
    module = import_module(f"mm1_pipeline.corpus.readers.{name}")
    return module.READERS[source_format]


def read_source(source: Source) -> Iterator[Found]:
    """Reads a source record by record, in the order of its files.

    Yields:
        One item for each unit of `read`, which every reader's module defines.

    Raises:
        ValueError: the parameters do not fit the files.
    """
    found = reader_of(source.config.format).read(source)
    if source.config.share is None:
        return found
    return _of_share(found, *source.config.share)


def _of_share(found: Iterator[Found], low: float, high: float) -> Iterator[Found]:
    """What has its key between two numbers; the rest is another source's."""
    for item in found:
        if isinstance(item, PassedOver) or low <= key_fraction(item.key) < high:
            yield item
        else:
            yield PassedOver(Passed.OTHER_ENTRY)


def key_fraction(key: str) -> float:
    """A number from 0 to below 1 that a record's key alone decides, evenly spread."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def open_files(config: SourceConfig) -> SourceFiles:
    """The files of a source that its reader reads; a path that is a file is taken as it is.

    Raises:
        FileNotFoundError: nothing is at the path.
    """
    layout = config.format.layout
    return SourceFiles(
        config.path, patterns=layout.files, also=config.files, below=layout.looks_below
    )


def unread_files(config: SourceConfig, files: SourceFiles) -> tuple[Counter[str], int]:
    """What lies in a source's folder and is not read: how many files by suffix, and their bytes."""
    unread = [file for file in files.unread if not _is_beside(config, file.name)]
    return Counter(whole_suffix(file.name) for file in unread), sum(file.size for file in unread)


def input_listing(config: SourceConfig) -> list[tuple[str, int]]:
    """Names and sizes of all that a source's reader looks at in its folder."""
    return open_files(config).listing(lambda name: is_read(config, name))


def _is_beside(config: SourceConfig, name: str) -> bool:
    """Whether a file that matches no pattern is one of the format's: tables, and image files."""
    suffix = posixpath.splitext(name)[1].lower()
    if suffix in config.format.layout.tables:
        return True
    return has_images_beside(config) and suffix[1:] in IMAGE_SUFFIXES
