"""Reads COCO's captions and TextCaps; their files are those of `annotations.captions`.

Unit of `read`: in training sources one caption, which becomes a pair of its own; in evaluation
sources one image, whose captions become its references. An image without captions, and a caption
without image, is one unit in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mm1_pipeline.annotations import captions
from mm1_pipeline.annotations.questions import Read
from mm1_pipeline.annotations.records import Captioned, PassedOver, RejectedEntry
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers.annotations import (
    annotated_image,
    image_folder_problems,
    open_image_folder,
    read_json_value,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    caption_record,
    read_each_file,
)
from mm1_pipeline.corpus.readers.question_sets import SECOND
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.ground.rejects import Reason, Rejected


def _read(read_content: Read, source: Source) -> Iterator[Found]:
    """Reads all annotation files."""
    images = AnnotatedImages(open_image_folder(source))
    return read_each_file(source, partial(_read_file, read_content, images))


def _read_file(
    read_content: Read, images: AnnotatedImages, source: Source, file: SourceFile
) -> Iterator[Found]:
    found = list(read_content(read_json_value(source, file), captions.EVERYTHING))
    source.files.expected_records = sum(
        max(1, len(item.captions))
        if isinstance(item, Captioned) and not source.is_evaluation
        else 1
        for item in found
    )
    for item in found:
        if isinstance(item, PassedOver):
            yield item
        elif isinstance(item, RejectedEntry):
            key = f"image_{item.key}" if item.is_asked else item.key
            yield RejectedRecord(f"{file.key}/{key}", item.why)
        elif item.repeats:
            yield RejectedRecord(f"{file.key}/image_{item.key}", SECOND)
        else:
            assert isinstance(item, Captioned), item
            yield from _to_items(images, source, file, item)


def _to_items(
    images: AnnotatedImages, source: Source, file: SourceFile, item: Captioned
) -> Iterator[Found]:
    image = annotated_image(images, item.image)
    if source.is_evaluation:
        key = f"{file.key}/{item.key}"
        yield RawRecord(key, (Segment.of_image(0),), (image,), item.references, item.metadata)
        return
    if not item.captions:  # its references alone are what captions are compared with
        why = Rejected(Reason.IMAGE_WITHOUT_CAPTION)
        yield RejectedRecord(f"{file.key}/image_{item.key}", why)
    for caption in item.captions:
        metadata = {**item.metadata, "annotation_id": caption.identifier}
        yield caption_record(source, f"{file.key}/{caption.key}", image, caption.text, metadata)


READERS = {
    name: Reader(partial(_read, read), image_folder_problems)
    for name, read in {
        SourceFormat.COCO_CAPTIONS: captions.read_coco,
        SourceFormat.TEXT_CAPS: captions.read_text_caps,
    }.items()
}
