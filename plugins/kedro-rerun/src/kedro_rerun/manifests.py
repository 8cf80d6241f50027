"""The manifest of an artifact version: what its files are, and whether they still are.

Source of the shard rule: mosaicml-streaming writes index.json last and, when asked, with a
hash of every shard, so hashing the index alone pins terabytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from kedro_rerun.errors import StalenessError
from kedro_rerun.files import (
    CONTENT_HASH,
    hash_file,
    hash_json,
    read_json,
    seal,
    unseal,
    walk_files,
)
from kedro_rerun.shapes import ShapeError, restore

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_INDEX = "index.json"
_DIFFERS = "its content differs from what was published."
_VISIBLE = ("format", "kind", "schema_version", "counts", "files")

HashFile = Callable[[Path, str], str]
"""Gives a file's hash by a named algorithm; `compare` takes a caching one."""


class FileEntry(TypedDict):
    """One file of an artifact, as its manifest lists it."""

    size: int
    hash: NotRequired[str]
    """XXH3-128 of the content."""
    index: NotRequired[str]
    """In place of a hash: the index.json (relative path) that holds this shard's hashes."""


class Manifest(TypedDict):
    """Content of manifest.json."""

    format: int
    kind: str
    schema_version: int
    fingerprint: str
    digest: str
    """Hash of kind, schema_version, counts and files: what downstream stages can see."""
    counts: dict[str, Any]
    files: dict[str, FileEntry]
    provenance: dict[str, Any]
    """How the version came to be; may hold times, so it is outside of the digest."""
    checksum: NotRequired[str]
    """Of all the rest; earlier versions of this package wrote none."""


class _Shard(TypedDict):
    """What counts of one shard in an index."""

    basename: str
    bytes: int
    hashes: dict[str, str]


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Lists the files of a folder that is to be published, with size and hash.

    Shards whose hashes stand in an index.json of their own folder (the layout of
    mosaicml-streaming) are listed by size, so that terabytes need not be read again.

    Args:
        directory: the folder.

    Returns:
        Entry by relative POSIX path.

    Raises:
        StalenessError: for an empty folder, a link, a reserved name, a shard whose size is not the
            index's.
    """
    sizes = {name: stat.st_size for name, stat in _walk_plain_files(directory)}
    if not sizes:
        raise StalenessError(
            f"{directory}: found no file to publish. The node must write to its workspace's "
            "staging folder before it returns."
        )
    if MANIFEST in sizes:
        raise StalenessError(
            f"{directory / MANIFEST}: this name is reserved for the artifact's manifest. "
            "Give the file another name."
        )
    listed = _find_indexed_shards(directory, sizes)
    return {
        name: {"size": size, "index": listed[name]}
        if name in listed
        else {"size": size, "hash": hash_file(directory / name)}
        for name, size in sizes.items()
    }


def build_manifest(
    directory: Path,
    *,
    kind: str,
    schema_version: int,
    fingerprint: str,
    counts: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Manifest:
    """Describes a folder that is to be published.

    Args:
        directory: the folder, without a manifest yet.
        kind: what the artifact is.
        schema_version: version of the layout inside the folder.
        fingerprint: of what the folder was made from.
        counts: JSON object; part of the digest.
        provenance: JSON object; outside of the digest.

    Returns:
        The manifest; equal content gives an equal digest, whatever made it.

    Raises:
        StalenessError: as `describe_files`.
    """
    manifest: Manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "schema_version": schema_version,
        "fingerprint": fingerprint,
        "digest": "",
        "counts": dict(counts),
        "files": describe_files(directory),
        "provenance": dict(provenance),
    }
    # Through JSON and back, so that the digest is the same before and after it was on disk.
    manifest = json.loads(json.dumps(manifest))
    manifest["digest"] = compute_digest(manifest)
    return seal(manifest)  # pyright: ignore[reportReturnType]


def compute_digest(manifest: Manifest) -> str:
    """Hashes what downstream stages can see of a version.

    The fingerprint stays out: a rebuilt version with equal content must look equal, which is
    what stops a wave of reruns.
    """
    return hash_json({key: manifest[key] for key in _VISIBLE})


def dump_manifest(manifest: Manifest) -> str:
    """The text of manifest.json."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def read_manifest(directory: Path) -> Manifest | None:
    """Reads the manifest of a version; None where it is missing or damaged."""
    try:
        return restore(Manifest, read_json(directory / MANIFEST))
    except ShapeError:
        return None


def compare(
    directory: Path, manifest: Manifest, *, deep: bool, hash_content: HashFile = hash_file
) -> list[str]:
    """Compares a version's folder with its manifest.

    Args:
        directory: the version's folder, which may be damaged.
        manifest: what it should hold.
        deep: hashes every file; otherwise names and sizes are compared.
        hash_content: how a file is hashed, for instance through a cache.

    Returns:
        One sentence for each difference; empty for a whole version.
    """
    problems = []
    is_sealed = unseal(manifest, required=False) is not None
    if manifest["digest"] != compute_digest(manifest) or not is_sealed:
        problems.append(f"{MANIFEST}: its digest does not match its content; it was edited.")
    problems += _compare_listing(directory, manifest)
    if deep and not problems:
        problems += _compare_content(directory, manifest, hash_content)
    return problems


def damaged_files(directory: Path, manifest: Manifest, suffixes: tuple[str, ...]) -> list[str]:
    """Hashes some files anew, whatever their times say: a disk that rots changes no time.

    Args:
        directory: the version's folder, which may be damaged.
        manifest: what it should hold.
        suffixes: of the names to look at. Shards that an index lists are left to their readers.

    Returns:
        Names of files that are missing or have another content; the manifest's own first.
    """
    edited = [] if unseal(manifest, required=False) is not None else [MANIFEST]
    return edited + [
        name
        for name, entry in manifest["files"].items()
        if name.endswith(suffixes)
        and "hash" in entry
        and not ((directory / name).is_file() and hash_file(directory / name) == entry["hash"])
    ]


def _compare_listing(directory: Path, manifest: Manifest) -> list[str]:
    if not directory.is_dir():
        return [f"{directory}: the folder is missing."]
    found = {name: stat.st_size for name, stat in walk_files(directory) if name != MANIFEST}
    listed = manifest["files"]
    problems = [f"{name}: missing." for name in listed if name not in found]
    problems += [f"{name}: not in the manifest." for name in found if name not in listed]
    problems += [
        f"{name}: found {found[name]} bytes, expected {entry['size']}."
        for name, entry in listed.items()
        if name in found and found[name] != entry["size"]
    ]
    return problems


def expected_hashes(
    directory: Path, manifest: Manifest
) -> Iterator[tuple[str, str, str, str | None]]:
    """Lists the hash that each file of a version must have.

    Args:
        directory: the version's folder, which may be damaged.
        manifest: lists files with a hash, or with the index that holds it.

    Yields:
        Relative path, algorithm, hash, and for a shard the index that says so. Files come
        before shards, as an index that is not what it was says nothing about its shards.
    """
    entries = manifest["files"]
    for name, entry in entries.items():
        if "hash" in entry:
            yield name, CONTENT_HASH, entry["hash"], None
    for index in sorted({entry["index"] for entry in entries.values() if "index" in entry}):
        for name, (_, hashes) in (_read_index(directory / index) or {}).items():
            # One of several hashes is enough; XXH is an order of magnitude faster than SHA.
            algorithm = min(hashes, key=lambda known: (not known.startswith("xxh"), known))
            yield index[: -len(_INDEX)] + name, algorithm, hashes[algorithm], index


def _compare_content(directory: Path, manifest: Manifest, hash_content: HashFile) -> list[str]:
    problems: list[str] = []
    for name, algorithm, expected, index in expected_hashes(directory, manifest):
        if index is not None and f"{index}: {_DIFFERS}" in problems:
            break
        if hash_content(directory / name, algorithm) != expected:
            text = _DIFFERS if index is None else f"its {algorithm} differs from {index}."
            problems.append(f"{name}: {text}")
    return problems


def _find_indexed_shards(directory: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    listed: dict[str, str] = {}
    for index in sizes:
        if index.rpartition("/")[2] != _INDEX:
            continue
        prefix = index[: -len(_INDEX)]
        for name, (size, _) in (_read_index(directory / index) or {}).items():
            found = sizes.get(prefix + name)
            if found != size:
                raise StalenessError(
                    f"{directory / index}: the shard {name} has "
                    f"{'no file' if found is None else f'{found} bytes'}, expected {size} bytes. "
                    "Write the shards anew."
                )
            listed[prefix + name] = index
    return listed


def _read_index(path: Path) -> dict[str, tuple[int, dict[str, str]]] | None:
    """Sizes and hashes by file name; None where the file is not an index with hashes."""
    content: Any = read_json(path)
    try:
        files = [shard.get("zip_data") or shard["raw_data"] for shard in content["shards"]]
        counted = [{name: file[name] for name in _Shard.__annotations__} for file in files]
        shards = [restore(_Shard, file) for file in counted]
    except (AttributeError, KeyError, TypeError, ShapeError):
        return None
    if not all(shard["hashes"] for shard in shards):
        return None
    return {shard["basename"]: (shard["bytes"], shard["hashes"]) for shard in shards}


def _walk_plain_files(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    for parent, folders, names in os.walk(directory):
        for name in (*folders, *names):
            if os.path.islink(os.path.join(parent, name)):
                raise StalenessError(
                    f"{os.path.join(parent, name)}: found a link. An artifact must hold its "
                    "own files; copy what the link points to."
                )
    yield from walk_files(directory)
