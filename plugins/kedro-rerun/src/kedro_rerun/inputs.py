"""Digests of what nodes read: artifacts, files, raw folders, remote paths."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kedro_rerun.artifacts import current
from kedro_rerun.files import hash_json
from kedro_rerun.hash_cache import HashCache, signature

ABSENT = "absent"
UNREACHABLE = "unreachable"


def artifact_digest(root: Path) -> str:
    """Digest of an artifact's current version, from its manifest; `absent` without one."""
    artifact = current(root)
    return ABSENT if artifact is None else artifact.digest


class Selection(NamedTuple):
    """What counts of a file or folder that a node reads."""

    place: str
    """Local path, or any URL that fsspec opens."""
    counts: Callable[[str], bool] = lambda name: True
    """Whether a file in the folder does, by its relative name."""
    follows_out: bool = True
    """Whether links that lead out of the folder are followed."""


def path_digest(selection: Selection, cache: HashCache) -> str:
    """Digest of the content of a file or folder, wherever it lies.

    A local one is read (unchanged files only once); contents and the names inside a folder
    count, times and places do not. What cannot be read (a link to nothing, a pipe, a file of
    somebody else) counts by its name and kind. For a remote one, the file system's own keys stand
    for the contents.

    Args:
        selection: what is read.
        cache: remembers the hashes of unchanged files.

    Returns:
        The digest; `absent` where there is nothing, `unreachable` for a remote path that
        cannot be listed.
    """
    return digest_by(selection, cache.hash)[0]


def path_state(selection: Selection) -> str:
    """What shows that a file or folder was written to, even if it is as before again.

    A change time cannot be set back as a modification time can, so a local file that was edited
    and restored has another state. For a remote one, the file system's keys are all there is.

    Args:
        selection: as `path_digest`.
    """
    return digest_by(selection, _state)[0]


def path_state_and_digest(selection: Selection, cache: HashCache) -> tuple[str, str]:
    """As `path_state`, then `path_digest`, of names that are listed once."""
    state, digest = digest_by(selection, _state, cache.hash)
    return state, digest


def digest_by(selection: Selection, *looks: Callable[[Path], str]) -> list[str]:
    """Digests of the names in a file or folder with what a look at each local file gives.

    Args:
        selection: as `path_digest`.
        looks: each gives a text for a file, and makes a digest; what it cannot read counts by its
            kind.
    """
    text = selection.place.removeprefix("file://")
    if "://" in text:
        return [_remote_digest(text, selection.counts)] * len(looks)
    local = Path(text)
    if local.is_file():
        return [_look(local, look) for look in looks]
    if not local.is_dir():
        return [ABSENT] * len(looks)
    files = [(name, local / name) for name in _walk(local, selection) if name]
    return [hash_json([[name, _look(file, look)] for name, file in files]) for look in looks]


def _state(path: Path) -> str:
    return hash_json(signature(path))


def _look(path: Path, look: Callable[[Path], str]) -> str:
    """What a look at a file gives; the kind of what is no file, which is never opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "found no file"
        return look(path)
    except OSError as error:  # A link to nothing or to itself, or it is not to be read.
        return f"unreadable: {errno.errorcode.get(error.errno or 0, '')}"


def _walk(root: Path, selection: Selection) -> Iterator[str]:
    """Relative names of what counts in a folder, in their order.

    Links may lead anywhere: to nothing, around in a circle, out of the folder.
    """
    real_root = os.path.realpath(root)

    def walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:  # Of somebody else: its name counts, as that of a file would.
            yield prefix.rstrip("/")
            return
        for entry in entries:
            name = f"{prefix}{entry.name}"
            real = os.path.realpath(entry.path) if entry.is_symlink() else ""
            leads_out = real and os.path.commonpath((real, real_root)) != real_root
            if leads_out and not selection.follows_out:
                continue
            if not _is_folder(entry):
                if selection.counts(name):
                    yield name
            elif (real := real or os.path.realpath(entry.path)) not in above:
                yield from walk(entry.path, f"{name}/", above | {real})

    return walk(os.fspath(root), "", frozenset((real_root,)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link in a circle.
        return False


def _remote_digest(url: str, counts: Callable[[str], bool]) -> str:
    import fsspec

    try:
        file_system, path = fsspec.url_to_fs(url)
        found: dict[str, Any] = file_system.find(path, detail=True)
        names = {name: name.removeprefix(path) for name in sorted(found)}
        keys = [
            [short, file_system.ukey(name)]
            for name, short in names.items()
            if not short or counts(short.lstrip("/"))
        ]
    except FileNotFoundError:
        return ABSENT
    except (OSError, ValueError, ImportError):
        return UNREACHABLE
    return hash_json(keys) if keys else ABSENT
