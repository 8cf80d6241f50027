"""Versioned artifact directories that are published atomically.

Layout of one artifact:

    <root>/<fingerprint12>/     a whole version with its manifest.json; never changed afterwards
    <root>/CURRENT              text file that names the version in use
    <root>/.staging/            versions being written, named <fingerprint12>-<pid>
    <root>/.work/<fingerprint12>/   progress that a later run may resume from
    <root>/.parts/<code12>/<name>/  what one version is put together of, for the next to take again

A version is written to staging, checked, given its manifest, renamed into place; then CURRENT
is replaced. A kill at any moment leaves the earlier version whole and current. Versions are
keyed by the fingerprint of what they were made from, so going back to earlier parameters finds
the earlier version again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kedro_rerun.errors import StalenessError
from kedro_rerun.files import (
    hash_file,
    is_running,
    remove_directory,
    remove_temporaries,
    sync_directory,
    sync_file,
    walk_files,
    write_atomically,
)
from kedro_rerun.manifests import (
    MANIFEST,
    HashFile,
    Manifest,
    build_manifest,
    compare,
    damaged_files,
    dump_manifest,
    read_manifest,
)

CURRENT = "CURRENT"
STAGING = ".staging"
WORK = ".work"
PARTS = ".parts"
_USED_PARTS = "parts"
_NO_MAKING = "unknown"
FINGERPRINT_LENGTH = 12
WEIGHTS = (".safetensors", ".json")
"""Files of models and tokenizers, which are read whole in any case. Tables of records may be too
large to be read twice, and readers of shards check the hashes of their index."""
_MANY_FILES = 256
_REPLACED = ".replaced"
_TRASH = ".trash"


@dataclass(frozen=True)
class Artifact:
    """A published version: the handle that stages pass to each other."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def counts(self) -> dict[str, Any]:
        return self.manifest["counts"]

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class Workspace:
    """Where one version of an artifact is written, and where its progress is kept."""

    root: Path
    fingerprint: str
    pid: int = field(default_factory=os.getpid)
    making: str = ""
    """Digest of the code and the libraries that write it."""
    used_parts: set[str] = field(default_factory=set, compare=False)
    """Names of the parts that were asked for."""

    def __post_init__(self) -> None:
        _check_fingerprint(self.fingerprint)

    @property
    def name(self) -> str:
        """The first digits of the fingerprint: the version's folder."""
        return self.fingerprint[:FINGERPRINT_LENGTH]

    @property
    def staging(self) -> Path:
        """The folder to write the version to, made on first use; `publish` moves it."""
        path = self._temporary("")
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def work(self) -> Path:
        """The folder for progress, made on first use; kept until the version is published."""
        path = self.root / WORK / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def version(self) -> Path:
        """The folder of the published version, whether it exists or not."""
        return self.root / self.name

    def part(self, name: str) -> Path:
        """The folder of a part that outlives this version, whether it exists or not.

        A node that gets other parameters or inputs, but the same code and libraries, finds there
        what it wrote before. It stays as long as a version that is kept has asked for it. Who
        fills it does so at once (`os.rename`), and checks what is found.

        Args:
            name: a relative path. It must tell which parameters and inputs the part was made
                from, such as a fingerprint of its own.
        """
        name = f"{self.making[:FINGERPRINT_LENGTH] or _NO_MAKING}/{name}"
        self.used_parts.add(name)
        return self.root / PARTS / name

    def discard_staging(self) -> None:
        """Removes what an earlier attempt of this process left in staging."""
        shutil.rmtree(self._temporary(""), ignore_errors=True)

    def discard_work(self) -> None:
        """Removes the progress, all or nothing."""
        remove_directory(self.root / WORK / self.name, self._temporary(f"{WORK}{_TRASH}"))

    def _temporary(self, suffix: str) -> Path:
        return self.root / STAGING / f"{self.name}-{self.pid}{suffix}"


@dataclass(frozen=True)
class Removed:
    """A folder that garbage collection removed, or would remove."""

    path: Path
    size: int


_deferred: list[list[Workspace]] = []
"""Published versions of each open `keep_work_until_done`; of the process, as threads may save."""


@contextlib.contextmanager
def keep_work_until_done() -> Iterator[None]:
    """Keeps the progress of versions published inside the block until it ends without error.

    A node may publish its model and fail in a later output; the next attempt then resumes
    instead of training anew.
    """
    published: list[Workspace] = []
    _deferred.append(published)
    try:
        yield
    finally:
        _deferred.pop()
    for workspace in published:
        workspace.discard_work()


def publish(
    workspace: Workspace,
    *,
    kind: str,
    schema_version: int,
    counts: Mapping[str, Any],
    provenance: Mapping[str, Any],
    validate: Callable[[Path], None] | None = None,
) -> Artifact:
    """Turns a workspace's staging folder into the artifact's current version.

    Args:
        workspace: the workspace whose staging folder is complete.
        kind: what the artifact is, for instance `shards`.
        schema_version: version of the layout inside the folder.
        counts: numbers that readers may rely on; they count for the digest, so they must not
            depend on time or machine.
        provenance: anything about the making; outside of the digest.
        validate: called with the staging folder; raises when the content is not fit to publish.

    Returns:
        The published artifact, now current.

    Raises:
        StalenessError: when staging is empty, holds links or a file named manifest.json, or an
            index.json does not match its shards.
    """
    staging = workspace.staging
    if validate is not None:
        validate(staging)
    if workspace.used_parts:
        provenance = {**provenance, _USED_PARTS: sorted(workspace.used_parts)}
    manifest = build_manifest(
        staging,
        kind=kind,
        schema_version=schema_version,
        fingerprint=workspace.fingerprint,
        counts=counts,
        provenance=provenance,
    )
    _make_durable(staging, manifest["files"])
    write_atomically(staging / MANIFEST, dump_manifest(manifest))
    _move_into_place(workspace, staging)
    _point_to(workspace.root, workspace.name)
    _release_work(workspace)
    return Artifact(workspace.version, manifest)


def adopt(
    root: Path, name: str, fetch: Callable[[str, Path], bool], names: Collection[str]
) -> bool:
    """Makes a version that was published elsewhere the current one here.

    Args:
        root: the artifact's root.
        name: of the version's folder.
        fetch: writes the file with a relative name to a path; tells whether it could.
        names: of all files, the manifest among them.

    Returns:
        Whether the version is here now; one that differs from its manifest is not.
    """
    workspace = Workspace(root, name)
    workspace.discard_staging()
    staging = workspace.staging
    try:
        if not all(fetch(file, staging / file) for file in names):
            return False
        manifest = read_manifest(staging)
        if manifest is None or not manifest["fingerprint"].startswith(name):
            return False
        if compare(staging, manifest, deep=True):
            return False
        _make_durable(staging, manifest["files"])
        _move_into_place(workspace, staging)
        _point_to(root, name)
    finally:
        workspace.discard_staging()
    return True


def current(root: Path) -> Artifact | None:
    """The version in use; None where nothing usable is published."""
    name = current_name(root)
    return None if name is None else version(root, name)


def current_name(root: Path) -> str | None:
    """What CURRENT says, without looking at the version itself."""
    try:
        name = (root / CURRENT).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    return name if _is_hexadecimal(name) and len(name) == FINGERPRINT_LENGTH else None


def version(root: Path, fingerprint: str) -> Artifact | None:
    """A published version by its fingerprint (or the first 12 digits), current or not."""
    path = root / fingerprint[:FINGERPRINT_LENGTH]
    manifest = read_manifest(path)
    if manifest is None or not manifest["fingerprint"].startswith(fingerprint):
        return None
    return Artifact(path, manifest)


def versions(root: Path) -> list[Artifact]:
    """All published versions, in the order of their fingerprints."""
    found = (version(root, path.name) for path in version_folders(root))
    return [artifact for artifact in found if artifact is not None]


def version_folders(root: Path) -> list[Path]:
    """Folders of all versions, damaged ones too."""
    return [path for path in _children(root) if _is_version_name(path.name)]


def activate(root: Path, fingerprint: str) -> Artifact:
    """Makes an existing version current again: the cache hit of A -> B -> A.

    Args:
        root: the artifact's root.
        fingerprint: 64 hexadecimal digits of what the version was made from.

    Returns:
        The version, now current.

    Raises:
        StalenessError: when there is no such version.
    """
    artifact = version(root, fingerprint)
    if artifact is None:
        known = ", ".join(sorted(found.path.name for found in versions(root))) or "none"
        raise StalenessError(
            f"{root}: found no version {fingerprint[:FINGERPRINT_LENGTH]} (published: {known}). "
            "Run the node that makes it."
        )
    if current_name(root) != artifact.path.name:
        _point_to(root, artifact.path.name)
    return artifact


def verify(artifact: Artifact, deep: bool = False, hash_content: HashFile = hash_file) -> list[str]:
    """Compares a version with its manifest; see `manifests.compare`.

    Args:
        artifact: a published version; its folder may be damaged.
        deep: hashes every file; otherwise names and sizes are compared.
        hash_content: how a file is hashed, for instance through a cache.

    Returns:
        One sentence for each difference; empty for a whole version.
    """
    return compare(artifact.path, artifact.manifest, deep=deep, hash_content=hash_content)


def check_content(artifact: Artifact, suffixes: tuple[str, ...] = WEIGHTS) -> None:
    """Hashes the files that a model is read from before anything is computed with them.

    Args:
        artifact: a published version; its folder may be damaged.
        suffixes: of the files' names.

    Raises:
        StalenessError: names the files that are not what was published.
    """
    if damaged := damaged_files(artifact.path, artifact.manifest, suffixes):
        raise StalenessError(
            f"{artifact.path}: found {', '.join(damaged)} damaged: missing, or of another content "
            "than was published, though no time shows it. Remove this folder; the next run makes "
            "it again."
        )


def sweep(root: Path) -> list[Path]:
    """Repairs and clears what killed processes left; run under the lock of the data root.

    A version that was moved aside, and whose replacement never arrived, moves back.

    Args:
        root: the artifact's root.

    Returns:
        The leftovers that were removed.
    """
    remove_temporaries(root, CURRENT)
    staging = root / STAGING
    if not staging.is_dir():
        return []
    removed = []
    for path in sorted(staging.iterdir()):
        if _is_in_use(path):
            continue
        if path.name.endswith(_REPLACED) and not _restore(root, path):
            continue
        shutil.rmtree(path)
        removed.append(path)
    return removed


def collect_garbage(root: Path, keep: Collection[str], dry_run: bool = False) -> list[Removed]:
    """Removes versions, progress and parts that nothing refers to; the current version stays.

    While the progress of a run is kept, so are all parts: nobody can tell which it made.

    Args:
        root: the artifact's root.
        keep: fingerprints to keep (full, or their first 12 digits).
        dry_run: only tells what would go.

    Returns:
        What was removed.
    """
    names = {fingerprint[:FINGERPRINT_LENGTH] for fingerprint in keep}
    if (name := current_name(root)) is not None:
        names.add(name)
    candidates = [
        path for path in version_folders(root) + _children(root / WORK) if path.name not in names
    ]
    if not any(path.name in names for path in _children(root / WORK)):
        candidates += _unused_parts(root, names)
    removed = []
    for path in candidates:
        size = sum(stat.st_size for _, stat in walk_files(path))
        if not dry_run:
            remove_directory(path, root / STAGING / f"{path.name}-{os.getpid()}{_TRASH}")
        removed.append(Removed(path, size))
    if not dry_run:
        sweep(root)
    return removed


def _unused_parts(root: Path, names: Collection[str]) -> list[Path]:
    kept = (artifact for artifact in versions(root) if artifact.path.name in names)
    used = {
        name for artifact in kept for name in artifact.manifest["provenance"].get(_USED_PARTS, [])
    }
    folders = [Path(name) for name in used]
    above = {parent for path in folders for parent in path.parents}
    found, waiting = [], _children(root / PARTS)
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root / PARTS)
        if name in above:
            waiting += _children(path)
        elif name not in folders:
            found.append(path)
    return sorted(found)


def _make_durable(staging: Path, files: Collection[str]) -> None:
    if len(files) > _MANY_FILES:  # One by one takes 2 ms each.
        os.sync()
        return
    for name in files:
        sync_file(staging / name)
    for directory in {(staging / name).parent for name in files} | {staging}:
        sync_directory(directory)


def _move_into_place(workspace: Workspace, staging: Path) -> None:
    target = workspace.version
    aside = workspace._temporary(_REPLACED)
    replaces = target.exists()
    if replaces:
        # Two steps, as a folder cannot be replaced in one: `sweep` undoes the first if the
        # second never happens.
        os.rename(target, aside)
    os.rename(staging, target)
    sync_directory(workspace.root)
    if replaces:
        shutil.rmtree(aside)


def _point_to(root: Path, name: str) -> None:
    write_atomically(root / CURRENT, name + "\n")


def _release_work(workspace: Workspace) -> None:
    if _deferred:
        _deferred[-1].append(workspace)
    else:
        workspace.discard_work()


def _restore(root: Path, aside: Path) -> bool:
    """Moves a replaced version back where its replacement is missing; True if it can go."""
    name = aside.name.split("-")[0]
    if (root / name).exists():
        return True
    os.rename(aside, root / name)
    return False


def _is_in_use(path: Path) -> bool:
    pid = path.name.partition("-")[2].partition(".")[0]
    return pid.isdigit() and int(pid) != os.getpid() and is_running(int(pid))


def _is_version_name(name: str) -> bool:
    return len(name) == FINGERPRINT_LENGTH and _is_hexadecimal(name)


def _is_hexadecimal(text: str) -> bool:
    return bool(text) and all(character in "0123456789abcdef" for character in text)


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _check_fingerprint(fingerprint: str) -> None:
    if len(fingerprint) < FINGERPRINT_LENGTH or not _is_hexadecimal(fingerprint):
        raise StalenessError(
            f"Found the fingerprint {fingerprint!r}, expected at least {FINGERPRINT_LENGTH} "
            "lower-case hexadecimal digits."
        )
