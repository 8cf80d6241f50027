"""Raw files wherever they lie: listed in one order, opened safely, measured for progress."""

from __future__ import annotations

import copy
import fnmatch
import io
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec.core

from mm1_pipeline.corpus.images import RejectedImage
from mm1_pipeline.corpus.quarantine import Reason, Rejected, storable

_SUFFIX = re.compile(
    r"(?<=[^/])\.(tar|parquet|jsonl?|tsv|csv|warc)(\.(gz|zst))?$", re.IGNORECASE | re.ASCII
)
"""What is taken off a file's name to make the keys of its records; nothing else is."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib"),
        *("tif", "tiff", "avif", "heic", "heif", "jp2", "jxl"),
    )
)
"""Suffixes of image files, in lower case. What no decoder reads is rejected by its content."""


@dataclass(frozen=True)
class SourceFile:
    """One raw file."""

    path: str
    """As its file system calls it."""
    name: str
    """Relative to the source's folder, with forward slashes."""
    size: int
    key: str
    """The start of its records' keys: the name without its format's suffix, unlike any other's."""


class SourceFiles:
    """The files of one source, in the order of their names.

    Args:
        path: folder or file; any URL that fsspec opens.
        patterns: one of which a file's name must match, in lower case, inside a folder.
        also: pattern that its name must match as well.
        below: whether folders inside the folder are looked into.

    Raises:
        FileNotFoundError: nothing is there.
    """

    def __init__(
        self, path: str, *, patterns: tuple[str, ...] = ("*",), also: str = "*", below: bool = True
    ) -> None:
        self.fs, root = fsspec.core.url_to_fs(path)
        is_file = self.fs.isfile(root)
        self.folder = posixpath.dirname(root) if is_file else root
        listed = {root: self.fs.info(root)} if is_file else _find(self.fs, root)
        names = {path: _relative(path, self.folder) for path in sorted(listed)}
        wanted = [
            name
            for name in names.values()
            if is_file or (_matches(name, patterns, also) and (below or "/" not in name))
        ]
        keys = _file_keys(wanted)
        self._all = [
            SourceFile(path, name, int(listed[path]["size"] or 0), keys.get(name, name))
            for path, name in names.items()
        ]
        self._files = [file for file in self._all if file.name in keys]
        self._whole = tuple(self._files)
        self.expected_records: int | None = None
        """Set by readers that know how many records there are."""
        self.bytes_total = sum(file.size for file in self._files)
        self._bytes_done = 0
        self._open: _Measured | None = None

    def subset(self, names: Collection[str]) -> SourceFiles:
        """The same source with only some of the files to read; look-ups still see all.

        Args:
            names: relative names of the files.
        """
        chosen = copy.copy(self)
        chosen._files = [file for file in self._files if file.name in names]
        chosen.bytes_total = sum(file.size for file in chosen._files)
        chosen._bytes_done, chosen._open = 0, None
        return chosen

    @property
    def of_source(self) -> list[SourceFile]:
        """All files of the source that its reader reads, also in a subset."""
        return list(self._whole)

    def __iter__(self) -> Iterator[SourceFile]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def bytes_read(self) -> int:
        """How far into the files reading has come."""
        return self._bytes_done + (min(self._open.num_read, self._open.size) if self._open else 0)

    def find(self, name: str) -> SourceFile | None:
        """The file with this relative name, whether it matches the suffixes or not."""
        return next((file for file in self._all if file.name == name), None)

    def open(self, file: SourceFile) -> BinaryIO:
        """Opens a file for reading; the progress counts the one opened last."""
        if self._open is not None:
            self._bytes_done += self._open.size
        self._open = _Measured(self.fs.open(file.path, "rb"), file.size)
        return cast(BinaryIO, self._open)

    def open_aside(self, file: SourceFile) -> BinaryIO:
        """Opens a file that the progress does not count."""
        return cast(BinaryIO, self.fs.open(file.path, "rb"))

    def listing(self) -> list[tuple[str, int]]:
        """Names and sizes: what a resumed run compares."""
        return [(file.name, file.size) for file in self._all]


class ImageFolder:
    """Images that annotations refer to by name; none outside of the folder is ever opened.

    Args:
        path: the folder; any URL that fsspec opens.
        max_bytes: size above which an image is refused unread.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(path)
        self._max_bytes = max_bytes
        found = _find(self._fs, self._root)
        self._sizes = {_relative(name, self._root): info["size"] for name, info in found.items()}

    @property
    def names(self) -> list[str]:
        """Relative names of everything in the folder, sorted."""
        return sorted(self._sizes)

    def resolve(self, name: str) -> str:
        """Finds a file in the folder, or in `images` inside it.

        Raises:
            RejectedImage: the name leads out of the folder, or nothing is there.
        """
        safe = safe_name(name)
        if safe is None:
            raise RejectedImage(Reason.UNSAFE_PATH, f"found the file name {name!r}")
        for candidate in (safe, f"images/{safe}"):
            if candidate in self._sizes:
                return candidate
        raise RejectedImage(Reason.IMAGE_MISSING, f"found no file {safe!r} in the image folder")

    def load(self, name: str) -> bytes:
        """Reads one file of the folder.

        Args:
            name: as `resolve` gives it.

        Raises:
            RejectedImage: the file is larger than allowed.
        """
        size = self._sizes[name] or 0
        if size > self._max_bytes:
            raise RejectedImage(
                Reason.IMAGE_TOO_MANY_BYTES, f"found {size} bytes, allowed {self._max_bytes}"
            )
        return cast(bytes, self._fs.cat_file(f"{self._root.rstrip('/')}/{name}"))


def safe_name(name: str) -> str | None:
    """A relative name in its plain form, or None when it leads anywhere else.

    Refused are absolute names, drive letters, URLs, backslashes, null bytes and every `..`.
    """
    if not name or "\\" in name or "\0" in name or ":" in name.split("/", 1)[0]:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return None
    return str(path)


def read_limited(stream: Any, limit: int, what: str) -> bytes:
    """Reads a whole stream unless it is longer than allowed.

    Raises:
        Rejected: the stream goes on beyond the limit.
    """
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Rejected(Reason.MEMBER_TOO_LARGE, f"{what}: found more than {limit} bytes, allowed")
    return data


class _Measured(io.RawIOBase):
    """A file that counts what was read of it."""

    def __init__(self, inner: Any, size: int) -> None:
        super().__init__()
        self._inner = inner
        self.size = size
        self.num_read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self.num_read += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._inner.close()
        super().close()


def _find(fs: Any, root: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    if not found and not fs.exists(root):
        raise FileNotFoundError(root)
    hidden = {name for name in found if "/." in f"/{_relative(name, root)}"}
    return {name: info for name, info in found.items() if name not in hidden}


def _file_keys(names: list[str]) -> dict[str, str]:
    """A key for every name of a folder; only a known suffix is taken off (`part.1.json`).

    Names that would share a key, such as `a.json` and `a.jsonl`, keep their suffixes.
    """
    short = {name: storable(_SUFFIX.sub("", name) or name) for name in names}
    times = Counter(short.values())
    keys = {name: key if times[key] == 1 else storable(name) for name, key in short.items()}
    taken: set[str] = set()
    for name, key in keys.items():
        # Two names that print alike, or a name that is another one without its suffix.
        numbered = (key, *(f"{key}#{number}" for number in range(2, len(names) + 2)))
        keys[name] = next(free for free in numbered if free not in taken)
        taken.add(keys[name])
    return keys


def _relative(name: str, folder: str) -> str:
    return name[len(folder) :].lstrip("/") if name.startswith(folder) else name


def _matches(name: str, patterns: tuple[str, ...], also: str) -> bool:
    base = posixpath.basename(name)
    fits = any(fnmatch.fnmatchcase(base.lower(), pattern) for pattern in patterns)
    return fits and fnmatch.fnmatchcase(base, also)
