"""Where shards go: a local folder, or any URL that fsspec opens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.core

_BLOCK = 1 << 22


def is_url(place: Path | str) -> bool:
    """Whether a place is reached through fsspec and not as a local path."""
    return "://" in str(place)


@dataclass(frozen=True, slots=True)
class ShardStore:
    """A remote folder of shards.

    Every file is written under a name that no reader asks for and renamed when it is whole; the
    names that say that all is there (`index.json`, then `shards.json`) come last.
    """

    url: str

    def put(self, file: Path, name: str) -> None:
        """Uploads a local file.

        Args:
            file: A local file, which stays where it is.
            name: Relative to the folder, with forward slashes.

        Raises:
            OSError: The store refused, or holds another size than was sent.
        """
        fs, root = self._open()
        target, temporary = f"{root}/{name}", f"{root}/{name}.part-{os.getpid()}"
        fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        with file.open("rb") as source, fs.open(temporary, "wb") as sink:
            while block := source.read(_BLOCK):
                sink.write(block)
        _replace(fs, temporary, target, file.stat().st_size)

    def put_text(self, text: str, name: str) -> None:
        """Uploads a small text; for arguments, see `put`."""
        fs, root = self._open()
        target, temporary = f"{root}/{name}", f"{root}/{name}.part-{os.getpid()}"
        fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        data = text.encode("utf-8")
        fs.pipe_file(temporary, data)
        _replace(fs, temporary, target, len(data))

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        fs, root = self._open()
        try:
            return int(fs.size(f"{root}/{name}"))
        except FileNotFoundError:
            return None

    def get(self, directory: Path) -> None:
        """Downloads everything into a local folder; check it with `verify_shards`."""
        fs, root = self._open()
        for name in fs.find(root):
            target = directory / name[len(root) :].lstrip("/")
            if not target.resolve().is_relative_to(directory.resolve()):
                raise ValueError(f"{self.url}: found the name {name!r}, which leads out of it.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with fs.open(name, "rb") as source, target.open("wb") as sink:
                while block := source.read(_BLOCK):
                    sink.write(block)

    def _open(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.url)
        # A listing that another process changed must not be answered from memory.
        fs.invalidate_cache()
        return fs, root.rstrip("/")


def _replace(fs: Any, temporary: str, target: str, expected: int) -> None:
    if (found := fs.size(temporary)) != expected:
        fs.rm_file(temporary)
        raise OSError(f"{target}: sent {expected} bytes, but the store holds {found}.")
    if fs.exists(target):
        fs.rm_file(target)
    fs.mv(temporary, target)
