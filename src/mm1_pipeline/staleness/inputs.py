"""Digests of what nodes read: artifacts, files, raw folders, remote paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm1_pipeline.staleness.artifacts import current
from mm1_pipeline.staleness.files import hash_json, walk_files
from mm1_pipeline.staleness.hash_cache import HashCache, signature

ABSENT = "absent"
UNREACHABLE = "unreachable"


def artifact_digest(root: Path) -> str:
    """Digest of an artifact's current version, from its manifest; `absent` without one."""
    artifact = current(root)
    return ABSENT if artifact is None else artifact.digest


def path_digest(path: str | Path, cache: HashCache) -> str:
    """Digest of the content of a file or folder, wherever it lies.

    A local one is read (unchanged files only once); contents and the names inside a folder
    count, times and places do not. For a remote one, the file system's own keys stand for the
    contents.

    Args:
        path: local path, or any URL that fsspec opens.
        cache: remembers the hashes of unchanged files.

    Returns:
        The digest; `absent` where there is nothing, `unreachable` for a remote path that
        cannot be listed.
    """
    text = str(path).removeprefix("file://")
    if "://" in text:
        return _remote_digest(text)
    local = Path(text)
    if local.is_file():
        return cache.hash(local)
    if local.is_dir():
        return hash_json([[name, cache.hash(local / name)] for name, _ in walk_files(local)])
    return ABSENT


def path_state(path: str | Path) -> str:
    """What shows that a file or folder was written to, even if it is as before again.

    A change time cannot be set back as a modification time can, so a local file that was edited
    and restored has another state. For a remote one, the file system's keys are all there is.

    Args:
        path: as `path_digest`.
    """
    text = str(path).removeprefix("file://")
    if "://" in text:
        return _remote_digest(text)
    local = Path(text)
    if not local.is_dir():
        return hash_json(signature(local)) if local.exists() else ABSENT
    return hash_json([[name, signature(local / name)] for name, _ in walk_files(local)])


def _remote_digest(url: str) -> str:
    import fsspec

    try:
        file_system, path = fsspec.url_to_fs(url)
        found: dict[str, Any] = file_system.find(path, detail=True)
        keys = [[name.removeprefix(path), file_system.ukey(name)] for name in sorted(found)]
    except FileNotFoundError:
        return ABSENT
    except (OSError, ValueError, ImportError):
        return UNREACHABLE
    return hash_json(keys) if keys else ABSENT
