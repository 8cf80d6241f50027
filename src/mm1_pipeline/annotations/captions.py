"""Captions of images, in the files that the authors of data sets publish.

    coco        {images: [{id, file_name}], annotations: [{id, image_id, caption}]}; NoCaps adds the
                image's domain
    text_caps   {data: [{image_id, caption_id, caption_str, reference_strs}]}, a row a caption
    karpathy    {images: [{cocoid, filepath, filename, split, sentences: [{raw}]}]}

A caption is a text; unlike an answer, a number is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mm1_pipeline.annotations.questions import EVERYTHING, Wanted
from mm1_pipeline.annotations.records import (
    Caption,
    Captioned,
    Entry,
    Found,
    ImageCall,
    ImageName,
    PassedOver,
    RejectedEntry,
    as_name,
    index_by,
    mark_repeated,
    parse_entries,
    table,
    text_of,
)
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected


def read_coco(content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
    """Images with all their captions, in the order of the images.

    Yields:
        Captions of no image and captions that are none first; an image without captions last.
    """
    if not isinstance(content, dict):
        what = f"found {type(content).__name__}, expected an object"
        raise Rejected(Reason.MALFORMED_RECORD, what)
    images: dict[str, Entry] = {}
    captions: dict[str, list[Caption]] = {}
    found: list[tuple[str, Entry | Rejected, bool]] = []
    for key, image, repeats in index_by(table(content, "images"), "id"):
        found.append((key, image, repeats))
        if not isinstance(image, Rejected) and not repeats:
            images[key], captions[key] = image, []
    hidden = wanted.hides_answers and "annotations" not in content
    rows = [] if hidden else table(content, "annotations")
    for key, row, repeats in index_by(rows, "id"):
        try:
            if isinstance(row, Rejected):
                raise row
            if repeats:
                raise Rejected(Reason.DUPLICATE_KEY, f"found several captions of the id {key!r}")
            text = _caption(row, "caption")
            image_id = as_name(row.get("image_id"))
            if image_id is None or image_id not in captions:
                what = f"found image_id {image_id!r}, in no image"
                raise Rejected(Reason.CAPTION_WITHOUT_IMAGE, what)
            captions[image_id].append(Caption(key, row["id"], text))
        except Rejected as why:
            yield RejectedEntry(f"caption_{key}", why, is_asked=False)
    for key, image, repeats in found:
        try:
            if isinstance(image, Rejected):
                raise image
            if "file_name" not in image:
                raise Rejected(Reason.MALFORMED_RECORD, "found no field 'file_name'")
            own = tuple(captions[key])
            if not own and not wanted.hides_answers:
                raise Rejected(Reason.IMAGE_WITHOUT_CAPTION)
            domain = image.get("domain")
            yield Captioned(
                key,
                ImageName(image["file_name"]),
                own,
                tuple(caption.text for caption in own),
                domain if isinstance(domain, str) else "",
                {"image_id": image["id"], "file_name": image["file_name"]},
                repeats,
            )
        except Rejected as why:
            yield RejectedEntry(key, why)


@dataclass
class _TextCapsImage:
    """What the rows of one image say."""

    identifier: Any
    captions: list[Caption] = field(default_factory=list)
    references: tuple[str, ...] | None = None
    rejected: list[RejectedEntry] = field(default_factory=list)
    """Rows that say no caption."""
    fault: Rejected | None = None
    """What is wrong with its references, which costs the image."""


def read_text_caps(content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
    """Images with all their captions, in the order of each image's first row."""
    images: dict[str, _TextCapsImage] = {}
    seen: set[str] = set()
    for place, row in enumerate(table(content, "data")):
        fields: Entry = row if isinstance(row, dict) else {}
        caption_id = as_name(fields.get("caption_id"))
        key, image_id = caption_id or f"entry_{place}", as_name(fields.get("image_id"))
        if row is not fields:
            why = Rejected(Reason.MALFORMED_RECORD, f"found {type(row).__name__}, no object")
            yield RejectedEntry(key, why)
        elif image_id is None:
            yield RejectedEntry(key, Rejected(Reason.CAPTION_WITHOUT_IMAGE, "found no image_id"))
        else:
            image = images.setdefault(image_id, _TextCapsImage(fields["image_id"]))
            try:
                if caption_id in seen:
                    what = f"found several captions of the id {caption_id!r}"
                    raise Rejected(Reason.DUPLICATE_KEY, what)
                seen.add(key)
                _add_row(image, key, fields, wanted)
            except Rejected as why:
                image.rejected.append(RejectedEntry(key, why, is_asked=False))
    for key, image in images.items():
        references = image.references or tuple(caption.text for caption in image.captions)
        fault = image.fault
        if fault is None and not references and not wanted.hides_answers:
            # The first thing wrong with its rows is what is wrong with the image.
            fault = image.rejected.pop(0).why if image.rejected else None
            fault = fault or Rejected(Reason.IMAGE_WITHOUT_CAPTION)
        yield from image.rejected
        if fault is not None:
            yield RejectedEntry(key, fault)
        else:
            yield Captioned(
                key,
                ImageName(image.identifier, ImageCall.STEM),
                tuple(image.captions),
                references,
                metadata={"image_id": image.identifier},
            )


def _add_row(image: _TextCapsImage, key: str, row: Entry, wanted: Wanted) -> None:
    listed = row.get("reference_strs")
    if listed is not None and image.references is None and image.fault is None:
        try:
            if not isinstance(listed, list):
                what = f"found {type(listed).__name__} in 'reference_strs', expected a list"
                raise Rejected(Reason.MALFORMED_RECORD, what)
            image.references = tuple(_caption({"r": one}, "r") for one in listed)
        except Rejected as why:
            image.fault = why
    if row.get("caption_str") is not None:
        text = _caption(row, "caption_str")
        image.captions.append(Caption(key, row.get("caption_id"), text))
    elif listed is None and not wanted.hides_answers:
        raise Rejected(Reason.IMAGE_WITHOUT_CAPTION, "found no text in the field 'caption_str'")


def read_karpathy(content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
    """Images of one of Karpathy's splits; `train` also means its rest, `restval`."""
    splits = {"train": ("train", "restval")}.get(wanted.subset, (wanted.subset,))

    def parse(key: str, row: Entry) -> Captioned:
        if "sentences" not in row:
            raise Rejected(Reason.IMAGE_WITHOUT_CAPTION, "found no field 'sentences'")
        captions = tuple(
            Caption(str(place), sentence.get("sentid"), _caption(sentence, "raw"))
            for place, sentence in enumerate(row["sentences"])
        )
        if not captions and not wanted.hides_answers:
            raise Rejected(Reason.IMAGE_WITHOUT_CAPTION)
        folder = row.get("filepath", "")
        name = ImageName(f"{folder}/{row['filename']}".lstrip("/"))
        references = tuple(caption.text for caption in captions)
        return Captioned(key, name, captions, references, metadata={"image_id": key})

    def read() -> Iterator[Found]:
        for place, row in enumerate(table(content, "images")):
            fields: Entry = row if isinstance(row, dict) else {}
            key = as_name(fields.get("cocoid", fields.get("imgid"))) or f"entry_{place}"
            if not wanted.subset or fields.get("split") in splits:
                yield from parse_entries([(key, row)], parse)
            elif row is fields:
                yield PassedOver(Passed.OTHER_ENTRY)
            else:  # of which split nobody can tell
                why = Rejected(Reason.MALFORMED_RECORD, f"found {type(row).__name__}, no object")
                yield RejectedEntry(key, why, is_asked=False)

    return mark_repeated(read())


def _caption(entry: Entry, field_name: str) -> str:
    found = entry.get(field_name)
    if isinstance(found, int | float):
        what = f"found {type(found).__name__}, expected text as a caption"
        raise Rejected(Reason.MALFORMED_RECORD, what)
    text = "" if found is None else text_of(found, "a caption")
    if not text:
        raise Rejected(Reason.TEXT_MISSING, f"found no text in the field {field_name!r}")
    return text
