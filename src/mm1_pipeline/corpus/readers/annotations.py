"""What the readers of annotation files share: whole JSON files, and images by name or number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from mm1_pipeline.corpus import decompression, json_streams
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.readers.base import RawImage, Source
from mm1_pipeline.ground.rejects import Reason, Rejected, storable

_MAX_DIGITS = 100
_MAX_NAME = 1_000
"""Characters of an identifier above which it is none."""


def open_image_folder(source: Source) -> ImageFolder:
    """The folder that annotations refer to: the configured one, else that of the annotations."""
    path = source.config.image_path or source.files.fs.unstrip_protocol(source.files.folder)
    follow_links = source.config.follow_image_links
    return ImageFolder(path, source.config.images.max_bytes, follow_links=follow_links)


def image_folder_problems(source: Source) -> list[str]:
    """Whether the configured folder of images is not there."""
    path = source.config.image_path
    if path is None:
        return []
    try:
        ImageFolder(path, source.config.images.max_bytes)
    except (ImportError, OSError, ValueError):
        return [
            f"{source.parameter('image_path')}: found nothing at {path!r}, expected the folder of "
            "the images."
        ]
    return []


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
            number = re.search(r"[0-9]+$", path.stem)
            if (
                number
                and len(number[0]) <= _MAX_DIGITS
                and path.suffix[1:].lower() in IMAGE_SUFFIXES
            ):
                self._names.setdefault(int(number[0]), []).append(name)

    def find(self, number: Any) -> RawImage:
        """The image of a number."""
        is_number = isinstance(number, int) and not isinstance(number, bool)
        names = self._names.get(number, []) if is_number else []
        if len(names) == 1:
            return image_by_name(self._folder, names[0])
        if names:
            found = f"found {len(names)} files, as {', '.join(names[:3])}, for image {number}"
            return RawImage.refused(Rejected(Reason.IMAGE_AMBIGUOUS, found))
        found = f"found no image file whose name ends in {str(number)[:_MAX_DIGITS]!r}"
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
    """Reads a whole JSON file of any content, plain or packed.

    Raises:
        Rejected: it is no JSON, or too long to be held.
    """
    limit = source.limits.max_annotation_bytes
    pieces, size = [], 0
    with source.files.open(file) as stream:
        for piece in decompression.read_chunks(stream, file.name.lower()):
            size += len(piece)
            if size > limit:
                raise Rejected(Reason.FILE_TOO_LARGE, f"found more than {limit} bytes, allowed")
            pieces.append(piece)
    value = json_streams.parse(b"".join(pieces), keep_repeated=True)
    if isinstance(value, Rejected):
        raise value
    return value


def entries(content: Mapping[str, Any], field: str) -> list[Any]:
    """One list of an annotation file.

    Raises:
        Rejected: the file has no such list, or several.
    """
    found = content.get(field)
    if not isinstance(found, list):
        raise Rejected(Reason.MALFORMED_RECORD, f"found no list {field!r}")
    if isinstance(content, json_streams.RepeatingObject):
        number = sum(name == field for name, _ in content.pairs)
        if number > 1:
            raise Rejected(Reason.DUPLICATE_KEY, f"found {number} lists {field!r}")
    return found


def as_name(identifier: Any) -> str | None:
    """How an identifier, a number or a text, stands in keys; None for anything else."""
    if not isinstance(identifier, int | str) or isinstance(identifier, bool):
        return None
    name = storable(str(identifier))
    return name if 0 < len(name) <= _MAX_NAME else None


def index_by(items: list[Any], field: str) -> Iterator[tuple[str, dict[str, Any] | Rejected]]:
    """Identifier and content of each entry; an entry without an identifier is rejected.

    Yields:
        The identifier as `as_name` gives it, or the entry's place where it has none, and the
        entry or what is wrong.
    """
    seen: set[str] = set()
    for place, item in enumerate(items):
        name = as_name(item.get(field)) if isinstance(item, dict) else None
        if name is None:
            found = f"found an entry without {field!r} at place {place}"
            yield f"entry_{place}", Rejected(Reason.MALFORMED_RECORD, found)
        elif name in seen:
            found = f"found {field} {name!r} a second time, at place {place}"
            yield name, Rejected(Reason.DUPLICATE_KEY, found)
        else:
            seen.add(name)
            yield name, item
