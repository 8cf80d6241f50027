"""Gives one data root what another has made, so that two runs can go on from it at once."""

from __future__ import annotations

import os
from pathlib import Path

from kedro_rerun.artifacts import CURRENT, STAGING, WORK, version_folders
from kedro_rerun.files import copy_atomically, walk_files
from kedro_rerun.manifests import MANIFEST
from kedro_rerun.run_lock import STATE_FOLDER, hold_run_lock

_NOT_SHARED = {STAGING, WORK}
_LOCK = "run.lock"


def clone_data_root(source: Path, target: Path) -> None:
    """Gives a data root every artifact, report and record of another.

    Published versions never change, so their files are linked and take no room; everything that
    is replaced in time (reports, records of runs, which version is current) is copied. What the
    target has beside that stays. A clone that was cut short is put right by the next: a version
    counts once its manifest is there, and records come last.

    Args:
        source: Data root whose nodes have run. Nobody may run in it meanwhile: its lock is held.
        target: Data root on the same file system, made if missing; its lock is held too.
    """
    with hold_run_lock(source), hold_run_lock(target):
        versions = _versions(source)
        for version in versions:
            _link_version(source / version, target / version)
        inside = tuple(f"{version.as_posix()}/" for version in versions)
        plain = [
            name
            for name, _ in walk_files(source)
            if not name.startswith(inside) and not _NOT_SHARED & set(Path(name).parts)
        ]
        records = [name for name in plain if name.startswith(f"{STATE_FOLDER}/")]
        for name in [name for name in plain if name not in set(records)] + records:
            if Path(name).name != _LOCK:
                copy_atomically(source / name, target / name)


def _versions(root: Path) -> list[Path]:
    """Whole versions of all artifacts below a data root, relative to it."""
    artifact_roots = {path.parent for path in root.rglob(CURRENT)}
    return [
        version.relative_to(root)
        for artifact in sorted(artifact_roots)
        for version in version_folders(artifact)
        if (version / MANIFEST).is_file()
    ]


def _link_version(source: Path, target: Path) -> None:
    if (target / MANIFEST).is_file():
        return
    names = [name for name, _ in walk_files(source)]
    names.sort(key=lambda name: name == MANIFEST)
    for name in names:
        link = target / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(source / name, link)
