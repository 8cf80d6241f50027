"""What lies in the folders of raw sources, and which of it is read.

Readers open these files and no other, and staleness counts these files and no other, so that a
README beside them, or what a file manager leaves, makes nothing run again.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
from enum import StrEnum
from typing import TYPE_CHECKING

from mm1_pipeline.config._base import Selection, is_data

if TYPE_CHECKING:
    from mm1_pipeline.config.ingest import SourceConfig


class SourceFormat(StrEnum):
    """How a raw source lies on disk."""

    IMG2DATASET = "img2dataset"
    """Tar shards with `<key>.jpg/.txt/.json` and a parquet of metadata beside each."""
    IMAGE_PARQUET = "image_parquet"
    """Parquet rows with encoded image bytes and a caption column."""
    INTERLEAVED_PARQUET = "interleaved_parquet"
    """Interleaved documents with their images' bytes, laid out as OBELICS and OmniCorpus do
    (parallel `texts` and `images`) or as MMC4 does (`text_list` and `image_info`)."""
    COCO_CAPTIONS = "coco_captions"
    """COCO caption annotations (JSON) beside a folder of images."""
    VQA_V2 = "vqa_v2"
    """VQAv2 questions and annotations (two JSON files) beside a folder of images."""
    LLAVA = "llava"
    """LLaVA / ShareGPT conversations (JSON) beside their images."""
    GQA = "gqa"
    """GQA questions (JSON) beside a folder of images."""
    A_OKVQA = "a_okvqa"
    """A-OKVQA questions with options (JSON) beside COCO's images."""
    OCR_VQA = "ocr_vqa"
    """OCR-VQA: dataset.json beside a folder of book covers."""
    TEXT_CAPS = "text_caps"
    """TextCaps captions (JSON) beside a folder of images."""
    DVQA = "dvqa"
    """DVQA questions on bar charts (JSON) beside a folder of images."""
    CHART_QA = "chart_qa"
    """ChartQA questions (JSON) beside a folder of images."""
    AI2D = "ai2d"
    """AI2D: one JSON file of questions with options an image."""
    DOC_VQA = "doc_vqa"
    """DocVQA or InfoVQA questions (JSON) beside a folder of images."""
    SYNTH_DOG = "synth_dog"
    """SynthDog: Parquet rows of an image and, as JSON, the text in it."""
    WARC_HTML = "warc_html"
    """Web archives of HTML pages and the images they show."""
    JSONL = "jsonl"
    """One JSON object a line, plain or `.zst` or `.gz`."""


_PACKED = ("", ".gz", ".zst")


def _json(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}.json{packed}" for stem in stems for packed in _PACKED)


FORMAT_FILES = {
    SourceFormat.IMG2DATASET: ("*.tar",),
    SourceFormat.IMAGE_PARQUET: ("*.parquet",),
    SourceFormat.INTERLEAVED_PARQUET: ("*.parquet",),
    SourceFormat.COCO_CAPTIONS: _json("*captions*"),
    SourceFormat.VQA_V2: _json("*questions*", "*annotations*"),
    SourceFormat.LLAVA: (*_json("*"), "*.jsonl", "*.jsonl.gz", "*.jsonl.zst"),
    SourceFormat.GQA: _json("*questions*"),
    SourceFormat.A_OKVQA: _json("*aokvqa*"),
    SourceFormat.OCR_VQA: _json("dataset*"),
    SourceFormat.TEXT_CAPS: _json("*textcaps*"),
    SourceFormat.DVQA: _json("*qa*"),
    SourceFormat.CHART_QA: _json("*"),
    SourceFormat.AI2D: _json("*"),
    SourceFormat.DOC_VQA: _json("*"),
    SourceFormat.SYNTH_DOG: ("*.parquet",),
    SourceFormat.WARC_HTML: ("*.warc", "*.warc.gz", "*.warc.zst"),
    SourceFormat.JSONL: (
        *("*.jsonl", "*.jsonl.gz", "*.jsonl.zst"),
        *("*.json", "*.json.gz", "*.json.zst"),  # C4 calls JSON lines so
    ),
}
"""Names of the files in a folder that hold each format, in lower case."""

_WITHOUT_IMAGE_FILES = frozenset(
    {
        SourceFormat.IMG2DATASET,
        SourceFormat.IMAGE_PARQUET,
        SourceFormat.INTERLEAVED_PARQUET,
        SourceFormat.SYNTH_DOG,
        SourceFormat.WARC_HTML,
        SourceFormat.JSONL,
    }
)
"""Formats that hold their images, or have none; those of the others are files of their own."""


_NO_IMAGES = (
    *(".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", ".html", ".pdf", ".py"),
    *(".parquet", ".arrow", ".tar", ".tgz", ".zip", ".gz", ".zst", ".bz2", ".xz", ".7z"),
)
"""Suffixes of what is no image, though annotations may call images by any other."""


def matches(name: str, patterns: tuple[str, ...], also: str) -> bool:
    """Whether a file's name fits one of the patterns, in any case of letters, and another one."""
    base = posixpath.basename(name)
    fits = any(fnmatch.fnmatchcase(base.lower(), pattern) for pattern in patterns)
    return fits and fnmatch.fnmatchcase(base, also)


def looks_below(config: SourceConfig) -> bool:
    """Whether a format's files are looked for in folders inside the folder."""
    return config.format != SourceFormat.LLAVA


def has_images_beside(config: SourceConfig) -> bool:
    """Whether the images of a source are files in the folder of its annotations."""
    return config.format not in _WITHOUT_IMAGE_FILES and config.image_path is None


def is_read(config: SourceConfig, name: str) -> bool:
    """Whether what a source gives depends on a file in its folder.

    Args:
        config: of the source.
        name: of the file, relative to the folder.
    """
    if not is_data(name):
        return False
    if matches(name, FORMAT_FILES[config.format], config.files):
        return looks_below(config) or "/" not in name
    if config.format == SourceFormat.IMG2DATASET:
        return name.lower().endswith(".parquet")
    return has_images_beside(config) and _is_image(name)


def read_by_source(config: SourceConfig, place: str) -> Selection:
    """What a source reads of its path: of a folder some files, and what lies beside a file."""
    if not os.path.isfile(place):
        return Selection(place, lambda name: is_read(config, name))
    folder, file = os.path.split(place)
    if has_images_beside(config):
        return Selection(folder or ".", lambda name: name == file or _is_image(name))
    if config.format == SourceFormat.IMG2DATASET:
        table = f"{os.path.splitext(file)[0]}.parquet"
        return Selection(folder or ".", lambda name: name in (file, table))
    return Selection(place, is_data)


def seen_as_image(config: SourceConfig, place: str) -> Selection:
    """What a source reads of its folder of images."""
    return Selection(place, _is_image, follows_out=config.follow_image_links)


def _is_image(name: str) -> bool:
    """Whether annotations could call a file an image."""
    return is_data(name) and not name.lower().endswith(_NO_IMAGES)
