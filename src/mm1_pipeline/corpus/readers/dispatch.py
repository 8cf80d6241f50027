"""From a source's format to its reader."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator

from mm1_pipeline.config.ingest import SourceConfig
from mm1_pipeline.config.source_files import (
    FORMAT_FILES,
    SourceFormat,
    has_images_beside,
    is_read,
    looks_below,
)
from mm1_pipeline.corpus.files import SourceFiles, whole_suffix
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.readers import (
    coco_captions,
    image_parquet,
    img2dataset,
    interleaved_parquet,
    jsonl,
    llava,
    question_sets,
    synth_dog,
    vqa_v2,
)
from mm1_pipeline.corpus.readers.base import Found, Source


def read_source(source: Source) -> Iterator[Found]:
    """Reads a source record by record, in the order of its files.

    Yields:
        One item for each unit of `read`, which every reader's module defines.

    Raises:
        ValueError: the parameters do not fit the files.
    """
    match source.config.format:
        case SourceFormat.IMG2DATASET:
            return img2dataset.read(source)
        case SourceFormat.IMAGE_PARQUET:
            return image_parquet.read(source)
        case SourceFormat.INTERLEAVED_PARQUET:
            return interleaved_parquet.read(source)
        case SourceFormat.COCO_CAPTIONS:
            return coco_captions.read(source)
        case SourceFormat.VQA_V2:
            return vqa_v2.read(source)
        case SourceFormat.LLAVA:
            return llava.read(source)
        case SourceFormat.SYNTH_DOG:
            return synth_dog.read(source)
        case (
            SourceFormat.GQA
            | SourceFormat.A_OKVQA
            | SourceFormat.OCR_VQA
            | SourceFormat.TEXT_CAPS
            | SourceFormat.DVQA
            | SourceFormat.CHART_QA
            | SourceFormat.AI2D
            | SourceFormat.DOC_VQA
        ):
            return question_sets.read(source)
        case SourceFormat.JSONL:
            return jsonl.read(source)
        case SourceFormat.WARC_HTML:
            from mm1_pipeline.corpus.readers import warc_html

            return warc_html.read(source)


def open_files(config: SourceConfig) -> SourceFiles:
    """The files of a source that its reader reads; a path that is a file is taken as it is.

    Raises:
        FileNotFoundError: nothing is at the path.
    """
    return SourceFiles(
        config.path,
        patterns=FORMAT_FILES[config.format],
        also=config.files,
        below=looks_below(config),
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
    if config.format == SourceFormat.IMG2DATASET:
        return suffix == ".parquet"
    return has_images_beside(config) and suffix[1:] in IMAGE_SUFFIXES
