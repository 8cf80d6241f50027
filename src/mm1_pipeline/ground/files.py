"""Files and folders that are whole or not there, and JSON that shows when it was changed.

A process that is killed at any moment leaves the old content or the new one. What it was about to
write stays under a hidden name that ends in `.tmp`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

_BLOCK_BYTES = 1 << 20
_CHECKSUM = "checksum"


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name to write a file under, which takes the file's place when the block ends.

    Args:
        path: The file; its folder is made when missing.
        durable: Waits until the content is on the disk, so that a machine that stops keeps it.

    Yields:
        A free name in the same folder. After an error, nothing is there and the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process, for two nodes of a training may write the same file in a shared folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk its room may be all there is
        raise
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Replaces a file's content in one step; arguments as of `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes a target's place when the block ends; an error leaves the target.

    Args:
        target: Where it goes, in place of what is there.

    Yields:
        An empty folder beside the target, to be filled.
    """
    fresh, aside = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    if aside.exists() and not target.exists():
        aside.rename(target)  # killed between the two names below
    for leftover in (fresh, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if target.exists():
        target.rename(aside)
    fresh.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Gives a file a second name, or copies it where the file system has no hard links."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, algorithm: str = "xxh3_128") -> str:
    """Hashes a file's content, a block at a time.

    Args:
        path: An existing file of any size; it is read in pieces.
        algorithm: A name of `hashlib`, or of `xxhash`, whose default is fast and meets none by
            accident. What is published is named by `sha256`.

    Returns:
        The digest in hexadecimal.
    """
    known = algorithm in xxhash.algorithms_available
    digest: Any = getattr(xxhash, algorithm)() if known else hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Reads JSON, packed where the name ends in .gz.

    Raises:
        ValueError: The file is missing or is no JSON.
    """
    try:
        content = path.read_bytes()
        return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found no JSON that can be read ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Replaces a file by JSON in one step, packed without a clock where the name ends in .gz."""
    with replacing(path) as temporary:
        if path.suffix == ".gz":
            text = json.dumps(content, separators=(",", ":"))
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
        else:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def canonical_json(value: Any) -> str:
    """Serialises a value so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def hash_json(value: Any) -> str:
    """Hashes a JSON value by its canonical text (SHA-256, hexadecimal)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a checksum to a JSON object that is to be written."""
    # What is sealed is what will be read: JSON makes text of keys, and lists of tuples.
    plain = json.loads(json.dumps(dict(content), allow_nan=False))
    return {**plain, _CHECKSUM: hash_json(plain)}


def unseal(content: Any) -> dict[str, Any] | None:
    """Takes the checksum off again; None where that is not what was sealed."""
    if not isinstance(content, dict):
        return None
    rest = {name: value for name, value in content.items() if name != _CHECKSUM}
    return rest if content.get(_CHECKSUM) == hash_json(rest) else None


def read_sealed(source: Path | bytes) -> dict[str, Any] | None:
    """Reads a sealed JSON object from a file or a line of one.

    Returns:
        The object without its checksum; None where it is missing or not as it was written: what
        it would have told is found out again.
    """
    try:
        text = source.read_bytes() if isinstance(source, Path) else source
        return unseal(json.loads(text))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def sealed_line(row: Mapping[str, Any]) -> bytes:
    """A row of a log, with its checksum and the end of the line; `read_sealed` reads it."""
    return json.dumps(seal(row)).encode("ascii") + b"\n"
