"""Raw files wherever they lie: listed in one order, opened safely, measured for progress."""

from __future__ import annotations

import copy
import io
import itertools
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from mm1_pipeline.config._base import is_data
from mm1_pipeline.config.source_files import matches
from mm1_pipeline.corpus.images import RejectedImage
from mm1_pipeline.ground.rejects import Reason, Rejected, storable

_SUFFIX = re.compile(
    r"(?<=[^/])\.(tar|parquet|jsonl?|tsv|csv|warc)(\.(gz|zst))?$", re.IGNORECASE | re.ASCII
)
"""What is taken off a file's name to make the keys of its records; nothing else is."""


@dataclass(frozen=True)
class SourceFile:
    """One raw file."""

    path: str
    """As its file system calls it."""
    name: str
    """Relative to the source's folder, with forward slashes."""
    size: int
    key: str
    """The start of its records' keys: the name without its format's suffix, unlike any other's,
    and the folder of none."""
    unusable: str = ""
    """Why it cannot be opened, for a person: a link to nothing, a pipe."""


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
        listed = {root: _File(int(self.fs.size(root) or 0))} if is_file else _find(self.fs, root)
        names = {path: _relative(path, self.folder) for path in sorted(listed)}
        wanted = [
            name
            for name in names.values()
            if is_file or (matches(name, patterns, also) and (below or "/" not in name))
        ]
        keys = _file_keys(wanted)
        self._all = [
            SourceFile(path, name, listed[path].size, keys.get(name, name), listed[path].unusable)
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

    def listing(self, and_those: Callable[[str], bool] = lambda name: False) -> list[Any]:
        """Names and sizes of the files that are read: what a resumed run compares.

        Args:
            and_those: tells by its name whether a file is read that matches no pattern.
        """
        read = {file.name for file in self._whole}
        files = (file for file in self._all if file.name in read or and_those(file.name))
        return [(file.name, file.size) for file in files]

    @property
    def unread(self) -> list[SourceFile]:
        """All files in the folder that do not match the patterns."""
        read = {file.name for file in self._whole}
        return [file for file in self._all if file.name not in read]

    def find(self, name: str) -> SourceFile | None:
        """The file with this relative name, whether it matches the suffixes or not."""
        return next((file for file in self._all if file.name == name), None)

    def open(self, file: SourceFile) -> BinaryIO:
        """Opens a file for reading; the progress counts the one opened last.

        Raises:
            Rejected: it cannot be opened, whoever asks.
        """
        if self._open is not None:
            self._bytes_done += self._open.size
        self._open = _Measured(self.open_aside(file), file.size)
        return cast(BinaryIO, self._open)

    def open_aside(self, file: SourceFile) -> BinaryIO:
        """Opens a file that the progress does not count; for errors, see `open`."""
        if file.unusable:
            raise Rejected(Reason.UNREADABLE_FILE, file.unusable)
        return cast(BinaryIO, self.fs.open(file.path, "rb"))


class ImageFolder:
    """Images that annotations refer to by name; none outside of the folder is ever opened.

    A link may lead to another place of the folder. Where one leads out of it, names that come
    with the data could reach any file of the machine, so it is refused unless it is asked for.

    Args:
        path: the folder; any URL that fsspec opens.
        max_bytes: size above which an image is refused unread.
        follow_links: whether links that lead out of the folder are followed.
    """

    def __init__(self, path: str, max_bytes: int, *, follow_links: bool = False) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(path)
        self._max_bytes = max_bytes
        found = _find(self._fs, self._root, follow_links=follow_links)
        names = {_relative(path, self._root): file for path, file in found.items()}
        self._files = {name: file for name, file in names.items() if is_data(name)}
        if not follow_links:
            for file in self._files.values():
                file.unusable = file.unusable or file.leads_out
        self._alike: dict[str, list[str]] | None = None

    @property
    def names(self) -> list[str]:
        """Relative names of everything in the folder, sorted."""
        return sorted(self._files)

    def resolve(self, name: str) -> str:
        """Finds a file in the folder, or in `images` inside it.

        A name that is there in another Unicode normal form is found as well: macOS writes
        decomposed names, others composed ones.

        Raises:
            RejectedImage: the name leads out of the folder, nothing is there, or several are.
        """
        safe = safe_name(name)
        if safe is None:
            raise RejectedImage(
                Reason.UNSAFE_PATH, f"found the file name {name!r}, which leads out of its folder"
            )
        candidates = (safe, f"images/{safe}")
        found = next(([place] for place in candidates if place in self._files), [])
        if not found:
            if self._alike is None:
                self._alike = defaultdict(list)
                for place in self._files:
                    self._alike[unicodedata.normalize("NFC", place)].append(place)
            composed = (unicodedata.normalize("NFC", place) for place in candidates)
            found = next((self._alike[place] for place in composed if place in self._alike), [])
        if len(found) > 1:
            raise RejectedImage(
                Reason.IMAGE_AMBIGUOUS, f"found {len(found)} files that are all called {safe!r}"
            )
        if not found:
            for folder in (
                str(above) for place in candidates for above in PurePosixPath(place).parents
            ):
                if folder in self._files and (why := self._files[folder].leads_out):
                    raise RejectedImage(Reason.UNSAFE_PATH, f"{safe!r}: {why}")
            raise RejectedImage(Reason.IMAGE_MISSING, f"found no file {safe} in the image folder")
        if why := self._files[found[0]].unusable:
            leads_out = why == self._files[found[0]].leads_out
            reason = Reason.UNSAFE_PATH if leads_out else Reason.IMAGE_MISSING
            raise RejectedImage(reason, f"{safe!r}: {why}")
        return found[0]

    def load(self, name: str) -> bytes:
        """Reads one file of the folder.

        Args:
            name: as `resolve` or `names` gives it.

        Raises:
            RejectedImage: the file is larger than allowed, or `resolve` refuses it.
        """
        size = self._files[self.resolve(name)].size
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


def whole_suffix(name: str) -> str:
    """The suffix of a file with that of its packing, in lower case: `.json.gz`."""
    base, suffix = posixpath.splitext(posixpath.basename(name).lower())
    if suffix in (".gz", ".zst", ".bz2", ".xz"):
        suffix = posixpath.splitext(base)[1] + suffix
    return storable(suffix)


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


@dataclass(slots=True)
class _File:
    """What is known about a file of a folder."""

    size: int
    unusable: str = ""
    leads_out: str = ""
    """Said where a link leads out of the folder."""


def _find(fs: Any, root: str, *, follow_links: bool = True) -> dict[str, _File]:
    """Everything in a folder and below by its path, but what is hidden."""
    if isinstance(fs, LocalFileSystem) and os.path.isdir(root):
        found = dict(_walk(root, follow_links))
    else:
        infos = cast(dict[str, dict[str, Any]], fs.find(root, detail=True))
        found = {path: _File(int(info["size"] or 0)) for path, info in infos.items()}
    if not found and not fs.exists(root):
        raise FileNotFoundError(root)
    return {path: file for path, file in found.items() if not _is_hidden(path, root)}


def _walk(root: str, follow_links: bool) -> Iterator[tuple[str, _File]]:
    """Lists a folder of this machine, where files may be anything and links lead anywhere.

    A folder outside is listed by its own name if links are not followed.
    """
    real_root = os.path.realpath(root)
    waiting = [(root, frozenset((real_root,)), "")]
    while waiting:
        folder, above, outside = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path, leads_out = posixpath.join(folder, entry.name), outside
                target = path
                if entry.is_symlink():
                    target = os.path.realpath(path)
                    is_inside = os.path.commonpath((target, real_root)) == real_root
                    leads_out = "" if is_inside else "found a link that leads out of the folder"
                try:
                    status = entry.stat()
                except OSError:  # it leads to nothing, to itself, or its target is not to be seen
                    yield path, _File(0, "found a link that leads to nothing")
                    continue
                if stat.S_ISDIR(status.st_mode) and leads_out and not follow_links:
                    yield path, _File(0, "", leads_out)
                elif stat.S_ISDIR(status.st_mode):
                    real = os.path.realpath(target)
                    if real not in above:  # else it leads back to a folder that it lies in
                        waiting.append((path, above | {real}, leads_out))
                elif stat.S_ISREG(status.st_mode):
                    yield path, _File(status.st_size, "", leads_out)
                else:
                    yield path, _File(0, "found a pipe, a socket or a device, expected a file")


def _is_hidden(path: str, root: str) -> bool:
    return "/." in f"/{_relative(path, root)}"


def _file_keys(names: list[str]) -> dict[str, str]:
    """A key for every name of a folder; only a known suffix is taken off (`part.1.json`).

    Names that would share a key, such as `a.json` and `a.jsonl`, keep their suffixes, and so do
    those whose key is another's folder: entry `b/1` of `a.tar` is none of `a/b.tar`.
    """
    short = {name: storable(_SUFFIX.sub("", name) or name) for name in names}
    times = Counter(short.values())
    folders = {str(folder) for key in short.values() for folder in PurePosixPath(key).parents}
    keys = {
        name: key if times[key] == 1 and key not in folders else storable(name)
        for name, key in short.items()
    }
    taken = set(folders)
    for name, key in keys.items():
        # Two names that print alike, or a name that is another one without its suffix.
        numbered = itertools.chain((key,), (f"{key}#{number}" for number in itertools.count(2)))
        keys[name] = next(free for free in numbered if free not in taken)
        taken.add(keys[name])
    return keys


def _relative(name: str, folder: str) -> str:
    return name[len(folder) :].lstrip("/") if name.startswith(folder) else name
