"""What lies in the folders of raw sources, and which of it is read.

Readers open these files and no other, and staleness counts these files and no other, so that a
README beside them, or what a file manager leaves, makes nothing run again.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
from typing import TYPE_CHECKING

from mm1_pipeline.config._base import Selection, is_data
from mm1_pipeline.config.source_formats import ImagePlace

if TYPE_CHECKING:
    from mm1_pipeline.config.ingest import SourceConfig


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


def has_images_beside(config: SourceConfig) -> bool:
    """Whether the images of a source are files in the folder of its annotations."""
    return config.format.layout.images == ImagePlace.BESIDE and config.image_path is None


def is_read(config: SourceConfig, name: str) -> bool:
    """Whether what a source gives depends on a file in its folder.

    Args:
        config: its format decides which suffixes are read.
        name: of the file, relative to the folder.
    """
    layout = config.format.layout
    if not is_data(name):
        return False
    if matches(name, layout.files, config.files):
        return layout.looks_below or "/" not in name
    if name.lower().endswith(layout.tables):
        return True
    return has_images_beside(config) and _is_image(name)


def read_by_source(config: SourceConfig, place: str) -> Selection:
    """What a source reads of its path: of a folder some files, and what lies beside a file."""
    if not os.path.isfile(place):
        return Selection(place, lambda name: is_read(config, name))
    folder, file = os.path.split(place)
    if has_images_beside(config):
        return Selection(folder or ".", lambda name: name == file or _is_image(name))
    if tables := config.format.layout.tables:
        stem = os.path.splitext(file)[0]
        read = {file, *(f"{stem}{suffix}" for suffix in tables)}
        return Selection(folder or ".", read.__contains__)
    return Selection(place, is_data)


def seen_as_image(config: SourceConfig, place: str) -> Selection:
    """What a source reads of its folder of images."""
    return Selection(place, _is_image, follows_out=config.follow_image_links)


def _is_image(name: str) -> bool:
    """Whether annotations could call a file an image."""
    return is_data(name) and not name.lower().endswith(_NO_IMAGES)
