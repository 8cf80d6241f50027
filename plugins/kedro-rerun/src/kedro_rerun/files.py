"""Durable file primitives: atomic writes, content hashes, whole-directory removal.

Everything that changes the disk in this package goes through these functions, so that a
kill at any moment finds either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from kedro_rerun.errors import StalenessError

CONTENT_HASH = "xxh3_128"
"""The hash of file contents throughout this package."""
_BLOCK_BYTES = 1 << 20
_CHECKSUM = "checksum"
_TEMPORARY = ".tmp"


def hash_file(path: Path, algorithm: str = CONTENT_HASH) -> str:
    """Hashes a file's content.

    Args:
        path: an existing file of any size; it is read in pieces.
        algorithm: a name of `hashlib` or `xxhash`. The default, XXH3-128, is fast and does not
            collide by accident; formats with hashes of their own prescribe others.

    Returns:
        The digest in hexadecimal.

    Raises:
        StalenessError: for an unknown algorithm.
    """
    digest = new_hash(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Serialises a value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_json(value: Any) -> str:
    """Hashes a JSON value by its canonical text (SHA-256, hexadecimal)."""
    return hash_text(canonical_json(value))


def hash_text(text: str) -> str:
    """Hashes text (SHA-256 of its UTF-8, hexadecimal)."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any | None:
    """Reads a JSON file; None where it is missing or not valid JSON.

    The files read with this are written atomically, so invalid means damaged from outside,
    which the callers treat like missing.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return None


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a checksum to a JSON object that is to be written."""
    return {**content, _CHECKSUM: hash_json(dict(content))}


def unseal(content: Any, *, required: bool = True) -> dict[str, Any] | None:
    """Takes the checksum off again.

    Args:
        content: what `read_json` found.
        required: whether one must be there; files of earlier versions of this package have none.

    Returns:
        The object; None where it is none, or not what was sealed.
    """
    if not isinstance(content, dict):
        return None
    rest = {name: value for name, value in content.items() if name != _CHECKSUM}
    if _CHECKSUM not in content and not required:
        return rest
    return rest if content.get(_CHECKSUM) == hash_json(rest) else None


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces a file's content in one step; after a crash it holds the old or the new text.

    Args:
        path: the file; its folder is made when missing.
        text: the new content.
        durable: waits until the content is on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        sync_directory(path.parent)


def write_cache(path: Path, text: str) -> None:
    """Replaces a file that only saves time, where that is possible.

    On a disk that is full or read-only the next process computes its content again.
    """
    with contextlib.suppress(OSError):
        write_atomically(path, text, durable=False)


def copy_atomically(source: Path, target: Path) -> None:
    """Replaces a file with a copy of another in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    shutil.copyfile(source, temporary)
    sync_file(temporary)
    os.replace(temporary, target)
    sync_directory(target.parent)


def temporary_name(path: Path) -> Path:
    """A name beside a file or folder that `remove_temporaries` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Waits until a folder's entries (new names, renames) are on the disk."""
    sync_file(path)


def remove_directory(path: Path, trash: Path) -> None:
    """Removes a folder without ever showing half of it: renamed away first, then deleted.

    Args:
        path: the folder; nothing happens where it is missing.
        trash: a free name on the same file system, swept later if this process dies.
    """
    if not path.exists():
        return
    trash.parent.mkdir(parents=True, exist_ok=True)
    if trash.exists():
        shutil.rmtree(trash)
    os.rename(path, trash)
    shutil.rmtree(trash)


def remove_temporaries(directory: Path, name: str = "*") -> None:
    """Removes half-written files that killed processes left beside their targets.

    Args:
        directory: the folder of the targets.
        name: of one target; `*` for all. Files of living processes stay.
    """
    for path in directory.glob(f".{name}.*{_TEMPORARY}"):
        pid = path.name.removesuffix(_TEMPORARY).rpartition(".")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not is_running(int(pid))):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)


def walk_files(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Lists the files under a folder, in the order of their names.

    Args:
        root: the folder.

    Yields:
        Relative POSIX path and stat of each file. Links are followed for files and folders
        of the user's raw data; `artifacts.publish` refuses them.
    """
    yield from _walk(os.fspath(root), "")


def is_running(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _walk(directory: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(entry.path, f"{name}/")
        else:
            yield name, entry.stat()


def new_hash(algorithm: str) -> Any:
    """An empty hash of `hashlib` or `xxhash`, by name; see `hash_file`."""
    if algorithm in xxhash.algorithms_available:
        return getattr(xxhash, algorithm)()
    if algorithm in hashlib.algorithms_available:
        return hashlib.new(algorithm, usedforsecurity=False)
    raise StalenessError(
        f"Found the hash algorithm {algorithm!r}, expected one of hashlib or xxhash. "
        "Write the index with one of those."
    )
