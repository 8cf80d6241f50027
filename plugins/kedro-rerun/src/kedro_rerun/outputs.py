"""Outputs of nodes: recorded after a run, checked before the next, put back for a cache hit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kedro_rerun import artifacts
from kedro_rerun.errors import StalenessError
from kedro_rerun.files import (
    CONTENT_HASH,
    copy_atomically,
    hash_file,
    remove_directory,
    sync_directory,
    temporary_name,
    walk_files,
)
from kedro_rerun.graph import Dataset, Storage
from kedro_rerun.hash_cache import HashCache
from kedro_rerun.inputs import ABSENT, Selection, artifact_digest, path_digest
from kedro_rerun.locks import OutputRecord
from kedro_rerun.manifests import MANIFEST, expected_hashes
from kedro_rerun.run_lock import STATE_FOLDER

_STORE = "outputs"
MEMORY = "memory"

FileContent = tuple[str, str, Path]
"""Algorithm and hash of a file's content, and where the file is."""


class OutputStore:
    """Knows the outputs of one data root.

    Artifacts keep their earlier versions themselves. Of small files (reports), a copy of each
    recorded content is kept, so that going back to earlier parameters brings them back.

    Args:
        data_root: the environment's folder.
        hashes: content hashes of unchanged files.
        max_bytes: size above which no copy of a file is kept.
    """

    def __init__(self, data_root: Path, hashes: HashCache, max_bytes: int) -> None:
        self.folder = data_root / STATE_FOLDER / _STORE
        self.hashes = hashes
        self._max_bytes = max_bytes
        # Checked once a process: nothing else may change outputs under the run lock.
        self._whole: set[tuple[str, OutputRecord]] = set()

    def digest(self, dataset: Dataset) -> str:
        """Digest of what is at a dataset's place now."""
        match dataset.storage:
            case Storage.ARTIFACT:
                return artifact_digest(dataset.path)
            case Storage.CUSTOM | Storage.OPAQUE:
                assert dataset.digest is not None
                return dataset.digest()
            case Storage.PATH:
                assert dataset.location is not None
                return path_digest(Selection(dataset.location()), self.hashes)
            case _:
                return MEMORY

    def record(self, dataset: Dataset) -> OutputRecord:
        """Describes what a node has just written, and keeps a copy of a small file.

        Raises:
            StalenessError: when nothing is there.
        """
        if dataset.storage is Storage.ARTIFACT:
            return self._record_artifact(dataset)
        digest = self.digest(dataset)
        if digest == ABSENT:
            raise StalenessError(
                f"{dataset.name}: found nothing after its node ran. The node must return it, and "
                "its dataset must save it where the catalog says."
            )
        record = OutputRecord(digest)
        if self._is_small_file(dataset):
            self._keep(dataset.path, digest)
        return record

    def problems(self, dataset: Dataset, record: OutputRecord) -> list[str]:
        """Compares what is in place with a record.

        Args:
            dataset: an output in any storage but memory.
            record: what a run left there.

        Returns:
            One phrase for each difference; empty when it is whole.
        """
        if (dataset.name, record) in self._whole:
            return []
        if dataset.storage is Storage.ARTIFACT:
            problems = self._problems_of_version(dataset, record)
        else:
            problems = self._problems_of_content(dataset, record)
        if not problems:
            self._whole.add((dataset.name, record))
        return problems

    def is_available(self, dataset: Dataset, record: OutputRecord) -> bool:
        """Whether a record's content is in place or can be put back without running."""
        return not self.problems(dataset, record) or (
            self._is_small_file(dataset) and self._is_kept(record.digest)
        )

    def put_back(self, dataset: Dataset, record: OutputRecord) -> None:
        """Makes a record's content current again; call after `is_available`."""
        if dataset.storage is Storage.ARTIFACT:
            assert record.version is not None
            artifacts.activate(dataset.path, record.version)
        elif self.problems(dataset, record):
            copy_atomically(self.folder / record.digest, dataset.next_path)

    def contents(self, dataset: Dataset, record: OutputRecord) -> dict[str, FileContent] | None:
        """The files of a whole output, to be shared with other machines.

        Args:
            dataset: an output in any storage but memory.
            record: what a run left there.

        Returns:
            What each file holds, and where it is, by relative name (empty for an output that is
            one file); None for an output that lies on a store of its own.
        """
        match dataset.storage:
            case Storage.ARTIFACT:
                assert record.version is not None
                artifact = artifacts.version(dataset.path, record.version)
                assert artifact is not None, "whole"
                manifest = artifact / MANIFEST
                listed = [
                    (name, algorithm, value)
                    for name, algorithm, value, _ in expected_hashes(
                        artifact.path, artifact.manifest
                    )
                ]
                listed.append((MANIFEST, CONTENT_HASH, hash_file(manifest)))
                root = artifact.path
            case Storage.PATH if dataset.is_local and dataset.path.is_dir():
                root = dataset.path
                listed = [
                    (name, CONTENT_HASH, self.hashes.hash(root / name))
                    for name, _ in walk_files(root)
                ]
            case Storage.PATH if dataset.is_local:
                return {"": (CONTENT_HASH, record.digest, dataset.path)}
            case _:
                return None
        return {name: (algorithm, value, root / name) for name, algorithm, value in listed}

    def bring(
        self,
        dataset: Dataset,
        record: OutputRecord,
        fetch: Callable[[str, Path], bool],
        *names: str,
    ) -> bool:
        """Puts an output in place whose files come from elsewhere: all of them, or nothing.

        Args:
            dataset: an output in any storage but memory.
            record: what its files are together.
            fetch: writes the file with a relative name to a path; tells whether it could.
            names: the relative names; one that is empty for an output that is a file.

        Returns:
            Whether the output is in place now, and is what the record says.
        """
        if dataset.storage is Storage.ARTIFACT:
            assert record.version is not None
            return artifacts.adopt(dataset.path, record.version, fetch, names)
        target = dataset.next_path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(target)
        try:
            if not all(fetch(name, temporary / name if name else temporary) for name in names):
                return False
            if names == ("",):
                os.replace(temporary, target)
            else:
                remove_directory(target, temporary.with_name(f"{temporary.name}.old"))
                os.rename(temporary, target)
            sync_directory(target.parent)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
        return not self.problems(dataset, record)

    def is_in_place(self, dataset: Dataset, record: OutputRecord) -> bool:
        """Whether a whole output is also the current one."""
        if dataset.storage is Storage.ARTIFACT:
            return artifacts.current_name(dataset.path) == record.version
        return True

    def exists(self, dataset: Dataset) -> bool:
        """Whether anything is at a dataset's place."""
        return self.digest(dataset) != ABSENT

    @staticmethod
    def collect_garbage(data_root: Path, keep: set[str], dry_run: bool) -> list[artifacts.Removed]:
        """Removes copies of files that no record names.

        Args:
            data_root: the environment's folder.
            keep: digests that records name.
            dry_run: only tells what would go.

        Returns:
            What was removed.
        """
        folder = data_root / STATE_FOLDER / _STORE
        removed = []
        for path in sorted(folder.glob("*")):
            if path.name not in keep:
                removed.append(artifacts.Removed(path, path.stat().st_size))
                if not dry_run:
                    path.unlink()
        return removed

    def remember(self, dataset: Dataset) -> None:
        """Takes the hashes of an artifact from its manifest, right after it was written."""
        artifact = artifacts.current(dataset.path)
        assert artifact is not None, "recorded before"
        for name, algorithm, value, _ in expected_hashes(artifact.path, artifact.manifest):
            self.hashes.seed(artifact / name, value, algorithm)

    def _record_artifact(self, dataset: Dataset) -> OutputRecord:
        artifact = artifacts.current(dataset.path)
        if artifact is None:
            raise StalenessError(
                f"{dataset.name}: found no version in {dataset.path} after its node ran. The node "
                "must write to its workspace, and its dataset must publish it."
            )
        return OutputRecord(artifact.digest, artifact.path.name)

    def _problems_of_version(self, dataset: Dataset, record: OutputRecord) -> list[str]:
        assert record.version is not None
        artifact = artifacts.version(dataset.path, record.version)
        if artifact is None:
            exists = (dataset.path / record.version).exists()
            return ["its manifest is damaged" if exists else "missing"]
        problems = artifacts.verify(artifact, deep=True, hash_content=self.hashes.hash)
        if not problems and artifact.digest != record.digest:
            problems = ["it was made again by something else"]
        return problems

    def _problems_of_content(self, dataset: Dataset, record: OutputRecord) -> list[str]:
        digest = self.digest(dataset)
        if digest == ABSENT:
            return ["missing"]
        return [] if digest == record.digest else ["its content differs from what was written"]

    def _is_small_file(self, dataset: Dataset) -> bool:
        return dataset.storage is Storage.PATH and dataset.is_local and not dataset.path.is_dir()

    def _keep(self, path: Path, digest: str) -> None:
        if path.stat().st_size <= self._max_bytes and not self._is_kept(digest):
            copy_atomically(path, self.folder / digest)

    def _is_kept(self, digest: str) -> bool:
        # Hashed anew: a damaged copy must not pass for the original.
        kept = self.folder / digest
        return kept.is_file() and hash_file(kept) == digest
