"""What the readers of annotation files share: whole JSON files, and folders of images."""

from __future__ import annotations

from functools import partial
from typing import Any

from mm1_pipeline.annotations.json_files import parse_file
from mm1_pipeline.annotations.records import ImageName
from mm1_pipeline.corpus import decompression
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.readers.base import RawImage, Source
from mm1_pipeline.ground.rejects import Reason, Rejected


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


def annotated_image(images: AnnotatedImages, image: ImageName) -> RawImage:
    """The image that an annotation calls."""
    try:
        return RawImage(partial(images.folder.load, images.resolve(image)))
    except Rejected as error:
        return RawImage.refused(error)


def read_json_value(source: Source, file: SourceFile) -> Any:
    """Reads a whole JSON file or file of JSON lines, plain or packed.

    Raises:
        Rejected: it is no JSON, or too long to be held.
    """
    return parse_file(read_content(source, file))


def read_content(source: Source, file: SourceFile) -> bytes:
    """Reads a whole file, plain or packed.

    Raises:
        Rejected: it is too long to be held.
    """
    limit = source.limits.max_annotation_bytes
    pieces, size = [], 0
    with source.files.open(file) as stream:
        for piece in decompression.read_chunks(stream, file.name.lower()):
            size += len(piece)
            if size > limit:
                raise Rejected(Reason.FILE_TOO_LARGE, f"found more than {limit} bytes, allowed")
            pieces.append(piece)
    return b"".join(pieces)
