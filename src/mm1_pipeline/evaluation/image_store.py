"""Encoded images of a benchmark: hashed once, read from their files when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from mm1_pipeline.corpus.images import SAFE, check_image
from mm1_pipeline.evaluation.formats.base import ImageSource


class ImageStore(Mapping[str, bytes]):
    """Encoded images by SHA-256.

    Images that lie in files stay there: a benchmark has more of them than fit in memory.
    """

    def __init__(self) -> None:
        self._sources: dict[str, ImageSource] = {}
        self._hashes: dict[Path, str] = {}

    def add(self, source: ImageSource) -> str:
        """Takes an image in and gives its SHA-256.

        Raises:
            RejectedImage: It does not decode, or breaks a limit of size.
            ValueError: There is no such file.
        """
        if isinstance(source, Path) and source in self._hashes:
            return self._hashes[source]
        data = _read(source)
        check_image(data)
        digest = hashlib.sha256(data).hexdigest()
        self._sources.setdefault(digest, source)
        if isinstance(source, Path):
            self._hashes[source] = digest
        return digest

    def __getitem__(self, digest: str) -> bytes:
        return _read(self._sources[digest])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def image_failure(error: Exception) -> str:
    """Why an image cannot be shown, as an item's failure."""
    return f"image: {error}"


def _read(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        if not source.is_file():
            raise ValueError(f"found no file {source.name} in {source.parent.name}")
        size = source.stat().st_size
        if size > SAFE.max_bytes:
            raise ValueError(f"found {size} bytes in {source.name}, allowed {SAFE.max_bytes}")
        return source.read_bytes()
    except OSError:
        raise ValueError(f"found no file {source.name} in {source.parent.name}") from None
