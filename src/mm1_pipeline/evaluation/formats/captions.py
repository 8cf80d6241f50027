"""Captioning benchmarks: COCO in Karpathy's splits, NoCaps, TextCaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats.base import (
    FormatFiles,
    RawItem,
    listed,
    parse_rows,
    read_json,
    read_table,
    text_of,
)


def read_karpathy(files: FormatFiles) -> Iterator[RawItem]:
    """Images of one of Karpathy's splits; `train` also means its rest, `restval`."""
    splits = {"train": ("train", "restval")}.get(files.subset, (files.subset,))
    images = read_table(files.paths["annotations"], "images")
    wanted = [row for row in images if not files.subset or _field(row, "split") in splits]

    def parse(row: Any) -> RawItem:
        return RawItem(
            key=str(row["cocoid"] if "cocoid" in row else row["imgid"]),
            images=(files.image(f"{row.get('filepath', '')}/{row['filename']}".lstrip("/")),),
            references=tuple(text_of(sentence["raw"]) for sentence in row["sentences"]),
        )

    return parse_rows(wanted, parse)


def read_coco_captions(files: FormatFiles) -> Iterator[RawItem]:
    """Images with all their captions; NoCaps also says how far each is from COCO."""
    path = files.paths["annotations"]
    content = read_json(path)
    captions: dict[Any, list[Any]] = {}
    hidden = files.hides_answers and isinstance(content, dict) and "annotations" not in content
    for row in [] if hidden else listed(content, "annotations", path):
        captions.setdefault(_field(row, "image_id"), []).append(row)

    def parse(row: Any) -> RawItem:
        return RawItem(
            key=str(row["id"]),
            images=(files.image(row["file_name"]),),
            references=tuple(
                text_of(caption["caption"]) for caption in files.answers(captions, row["id"])
            ),
            category=str(row.get("domain", "")),
        )

    return parse_rows(listed(content, "images", path), parse)


def read_textcaps(files: FormatFiles) -> Iterator[RawItem]:
    """Images with all their captions; the training file has a row a caption."""
    by_image: dict[Any, Any] = {}
    for row in read_table(files.paths["annotations"], "data"):
        by_image.setdefault(_field(row, "image_id"), row)

    def parse(row: Any) -> RawItem:
        return RawItem(
            key=str(row["image_id"]),
            images=(files.image(f"{row['image_id']}.jpg"),),
            references=tuple(text_of(text) for text in files.answers(row, "reference_strs")),
        )

    return parse_rows(by_image.values(), parse)


def _field(row: Any, name: str) -> Any:
    """A field of what may not even be a mapping; None then, so that it fails as an item."""
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, str | int) else None


READERS = {
    TaskFormat.KARPATHY: read_karpathy,
    TaskFormat.COCO_CAPTIONS: read_coco_captions,
    TaskFormat.TEXTCAPS: read_textcaps,
}
