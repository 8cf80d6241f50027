"""What the readers of annotation files share: whole JSON files, and images by name or number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from mm1_pipeline.corpus import json_streams
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.base import RawImage, Source


def open_image_folder(source: Source) -> ImageFolder:
    """The folder that annotations refer to: the configured one, else that of the annotations."""
    path = source.config.image_path or source.files.fs.unstrip_protocol(source.files.folder)
    return ImageFolder(path, source.config.images.max_bytes)


def image_by_name(folder: ImageFolder, name: Any) -> RawImage:
    """The image that an annotation names."""
    if not isinstance(name, str):
        found = f"found the file name {name!r}, expected text"
        return RawImage.refused(Rejected(Reason.MALFORMED_RECORD, found))
    try:
        return RawImage(partial(folder.load, folder.resolve(name)))
    except Rejected as error:
        return RawImage.refused(error)


class NumberedImages:
    """Images that annotations call by the number at the end of their file names.

    `COCO_val2014_000000000042.jpg` and `42.png` are both image 42.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self._names: dict[int, list[str]] = {}
        for name in folder.names:
            path = PurePosixPath(name)
            number = re.search(r"\d+$", path.stem)
            if number and path.suffix[1:].lower() in IMAGE_SUFFIXES:
                self._names.setdefault(int(number[0]), []).append(name)

    def find(self, number: Any) -> RawImage:
        """The image of a number."""
        names = self._names.get(number, []) if isinstance(number, int) else []
        if len(names) == 1:
            return RawImage(partial(self._folder.load, names[0]))
        if names:
            found = f"found {', '.join(names)} for image {number}"
            return RawImage.refused(Rejected(Reason.IMAGE_AMBIGUOUS, found))
        found = f"found no image file whose name ends in {number!r}"
        return RawImage.refused(Rejected(Reason.IMAGE_MISSING, found))


def read_json(source: Source, file: SourceFile) -> dict[str, Any]:
    """Reads a whole annotation file.

    Raises:
        Rejected: it is no JSON object.
    """
    value = read_json_value(source, file)
    if not isinstance(value, dict):
        raise Rejected(Reason.MALFORMED_RECORD, f"found {type(value).__name__}, expected an object")
    return value


def read_json_value(source: Source, file: SourceFile) -> Any:
    """Reads a whole JSON file of any content.

    Raises:
        Rejected: it is no JSON.
    """
    with source.files.open(file) as stream:
        value = json_streams.parse(stream.read())
    if isinstance(value, Rejected):
        raise value
    return value


def entries(content: Mapping[str, Any], field: str) -> list[Any]:
    """One list of an annotation file.

    Raises:
        Rejected: the file has no such list.
    """
    found = content.get(field)
    if not isinstance(found, list):
        raise Rejected(Reason.MALFORMED_RECORD, f"found no list {field!r}")
    return found


def index_by(items: list[Any], field: str) -> Iterator[tuple[Any, dict[str, Any] | Rejected]]:
    """Identifier and content of each entry; an entry without an identifier is rejected.

    Yields:
        The identifier, or the entry's place where it has none, and the entry or what is wrong.
    """
    seen: set[Any] = set()
    for place, item in enumerate(items):
        identifier = item.get(field) if isinstance(item, dict) else None
        if not isinstance(identifier, int | str):
            found = f"found an entry without {field!r} at place {place}"
            yield f"entry_{place}", Rejected(Reason.MALFORMED_RECORD, found)
        elif identifier in seen:
            found = f"found {field} {identifier!r} a second time, at place {place}"
            yield identifier, Rejected(Reason.DUPLICATE_KEY, found)
        else:
            seen.add(identifier)
            yield identifier, item
