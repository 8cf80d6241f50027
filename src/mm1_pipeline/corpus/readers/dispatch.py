"""From a source's format to its reader."""

from __future__ import annotations

from collections.abc import Iterator

from mm1_pipeline.config.ingest import SourceConfig, SourceFormat
from mm1_pipeline.corpus.files import SourceFiles
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

FORMAT_FILES = {
    SourceFormat.IMG2DATASET: ("*.tar",),
    SourceFormat.IMAGE_PARQUET: ("*.parquet",),
    SourceFormat.INTERLEAVED_PARQUET: ("*.parquet",),
    SourceFormat.COCO_CAPTIONS: ("*captions*.json",),
    SourceFormat.VQA_V2: ("*questions*.json", "*annotations*.json"),
    SourceFormat.LLAVA: ("*.json", "*.jsonl"),
    SourceFormat.GQA: ("*questions*.json",),
    SourceFormat.A_OKVQA: ("*aokvqa*.json",),
    SourceFormat.OCR_VQA: ("dataset*.json",),
    SourceFormat.TEXT_CAPS: ("*textcaps*.json",),
    SourceFormat.DVQA: ("*qa*.json",),
    SourceFormat.CHART_QA: ("*.json",),
    SourceFormat.AI2D: ("*.json",),
    SourceFormat.DOC_VQA: ("*.json",),
    SourceFormat.SYNTH_DOG: ("*.parquet",),
    SourceFormat.WARC_HTML: ("*.warc", "*.warc.gz", "*.warc.zst"),
    SourceFormat.JSONL: (
        *("*.jsonl", "*.jsonl.gz", "*.jsonl.zst"),
        *("*.json", "*.json.gz", "*.json.zst"),  # C4 calls JSON lines so
    ),
}
"""Names of the files in a folder that hold each format, in lower case."""


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
        below=config.format != SourceFormat.LLAVA,
    )
