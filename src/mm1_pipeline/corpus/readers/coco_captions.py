"""Reads COCO caption annotations: one JSON file of images and captions beside the image files.

Unit of `read`: in training sources one caption, which becomes a pair of its own; in evaluation
sources one image, whose captions become its references. An image without captions, and a caption
without image, is one unit in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.readers.annotations import (
    as_name,
    entries,
    image_by_name,
    image_folder_problems,
    index_by,
    open_image_folder,
    read_json,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    caption_record,
    read_each_file,
    record_fault,
)
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.ground.rejects import Reason, Rejected


def read(source: Source) -> Iterator[Found]:
    """Reads all annotation files."""
    return read_each_file(source, partial(_read_annotations, open_image_folder(source)))


def _read_annotations(folder: ImageFolder, source: Source, file: SourceFile) -> Iterator[Item]:
    content = read_json(source, file)
    images: dict[str, dict[str, Any]] = {}
    for identifier, image in index_by(entries(content, "images"), "id"):
        if isinstance(image, Rejected):
            yield RejectedRecord(f"{file.key}/image_{identifier}", image)
        else:
            images[identifier] = image
    captions: dict[str, list[tuple[Any, str]]] = {identifier: [] for identifier in images}
    for identifier, annotation in index_by(entries(content, "annotations"), "id"):
        try:
            image_id, caption = _check_caption(annotation, images)
            captions[image_id].append((annotation, caption))
        except Exception as error:
            yield RejectedRecord(f"{file.key}/caption_{identifier}", record_fault(error))
    source.files.expected_records = sum(
        1 if source.is_evaluation else max(1, len(found)) for found in captions.values()
    )
    for image_id, found in captions.items():
        yield from _to_items(folder, source, file, images[image_id], found)


def _check_caption(
    annotation: dict[str, Any] | Rejected, images: dict[str, dict[str, Any]]
) -> tuple[str, str]:
    if isinstance(annotation, Rejected):
        raise annotation
    image_id, caption = as_name(annotation.get("image_id")), annotation.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise Rejected(Reason.TEXT_MISSING, "found no text in the field 'caption'")
    if image_id is None or image_id not in images:
        raise Rejected(Reason.CAPTION_WITHOUT_IMAGE, f"found image_id {image_id!r}, in no image")
    return image_id, caption


def _to_items(
    folder: ImageFolder,
    source: Source,
    file: SourceFile,
    image: dict[str, Any],
    captions: list[tuple[dict[str, Any], str]],
) -> Iterator[Item]:
    image_id = as_name(image["id"])
    metadata = {"image_id": image["id"], "file_name": image.get("file_name")}
    if not captions:
        why = Rejected(Reason.IMAGE_WITHOUT_CAPTION)
        yield RejectedRecord(f"{file.key}/image_{image_id}", why)
    elif source.is_evaluation:
        references = tuple(caption for _, caption in captions)
        raw = image_by_name(folder, image.get("file_name"))
        segments = (Segment.of_image(0),)
        yield RawRecord(f"{file.key}/{image_id}", segments, (raw,), references, metadata)
    else:
        for annotation, caption in captions:
            raw = image_by_name(folder, image.get("file_name"))
            identifier = annotation["id"]
            key = f"{file.key}/{as_name(identifier)}"
            yield caption_record(
                source, key, raw, caption, {**metadata, "annotation_id": identifier}
            )


READERS = {SourceFormat.COCO_CAPTIONS: Reader(read, image_folder_problems)}
