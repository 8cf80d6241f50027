"""A cache of outputs that machines share, on any file system that fsspec opens.

Layout below its URL:

    content/<2 digits>/<algorithm>-<hash>   a file's content, named by it
    runs/<2 digits>/<fingerprint>.json      what a node with this fingerprint left, sealed
    incoming/<random>                       an upload that is not done

Nothing has its name before it is whole: content is uploaded under a random name and then moved, and
a run is named last. Whoever reads checks all the same, since a store may rot: content is hashed on
its way, and one that differs is not used. Nothing that is read is unpickled or executed here.
Writers need no lock, as equal names hold equal content.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from kedro_rerun.errors import without_secrets
from kedro_rerun.files import new_hash, seal, sync_file, unseal
from kedro_rerun.graph import UNKNOWN, Dataset, Storage
from kedro_rerun.locks import RunRecord
from kedro_rerun.outputs import OutputStore
from kedro_rerun.shapes import restore

_FORMAT = 1
_BLOCK_BYTES = 1 << 20

_WORD = re.compile(r"[0-9a-z_]{1,128}")
_T = TypeVar("_T")

logger = logging.getLogger("kedro.rerun")


@dataclass(frozen=True)
class CachedFile:
    """One file of an output."""

    algorithm: str
    hash: str
    size: int


@dataclass(frozen=True)
class CachedRun:
    """What a node's run left, for whoever would make the same."""

    run: RunRecord
    files: Mapping[str, Mapping[str, CachedFile]]
    """By output and relative name; the name of an output that is one file is empty. Outputs that
    have no files here (in memory, or on a store of their own) are left out."""


class SharedCache:
    """Finds, takes and gives the outputs of nodes by fingerprint.

    A cache only saves time: where it cannot be reached it says so once, and finds nothing more.

    Args:
        url: local path or any URL that fsspec opens.
        options: for the file system, as fsspec takes them.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self._options = dict(options or {})
        self._opened: tuple[Any, str] | None = None
        self._found: dict[str, CachedRun | None] = {}
        self._is_broken = False
        self._damaged: set[str] = set()

    def find(self, fingerprint: str) -> CachedRun | None:
        """The run with a fingerprint; None where there is none that is whole."""
        if fingerprint not in self._found:
            self._found[fingerprint] = self._try(lambda: self._read_run(fingerprint), None)
        return self._found[fingerprint]

    def forget(self, fingerprint: str) -> None:
        """Finds a run no more, as its content is not what it says; all of it is given anew."""
        if (run := self._found.get(fingerprint)) is not None:
            contents = (file for files in run.files.values() for file in files.values())
            self._damaged.update(map(_content_place, contents))
        self._found[fingerprint] = None

    def fetch(self, file: CachedFile, target: Path) -> bool:
        """Brings a file's content.

        Args:
            file: its hash names the content, which is hashed again on the way.
            target: where to; under a temporary name, as a broken one may be left there.

        Returns:
            Whether the content is what its name says; what is wrong else is said.
        """
        return self._try(lambda: self._fetch(file, target), False)

    def store(self, run: CachedRun, paths: Mapping[tuple[str, str], Path]) -> bool:
        """Gives a run to others: its content first, then its name.

        Args:
            run: the run.
            paths: local file by output and relative name.

        Returns:
            Whether the cache has it now.
        """
        return self._try(lambda: self._store(run, paths), False)

    def _fetch(self, file: CachedFile, target: Path) -> bool:
        file_system, root = self._open()
        place = _content_place(file)
        digest, size = new_hash(file.algorithm), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file_system.open(f"{root}/{place}", "rb") as source, target.open("wb") as copy:
                for block in iter(lambda: source.read(_BLOCK_BYTES), b""):
                    digest.update(block)
                    size += len(block)
                    copy.write(block)
        except FileNotFoundError:
            logger.warning("%s: %s is gone; the node runs instead.", self._shown, place)
            return False
        if (digest.hexdigest(), size) == (file.hash, file.size):
            sync_file(target)
            return True
        self._damaged.add(place)
        logger.warning("%s: %s is damaged; the node runs instead.", self._shown, place)
        return False

    def _store(self, run: CachedRun, paths: Mapping[tuple[str, str], Path]) -> bool:
        for output, files in run.files.items():
            for name, file in files.items():
                if not self._holds(file) and not self._upload(file, paths[output, name]):
                    return False
        file_system, _ = self._open()
        content = json.dumps(seal({"format": _FORMAT, **asdict(run)}))
        incoming = self._new_incoming()
        file_system.pipe_file(incoming, content.encode())
        self._name(incoming, _run_place(run.run.fingerprint))
        self._found[run.run.fingerprint] = run
        return True

    def _holds(self, file: CachedFile) -> bool:
        file_system, root = self._open()
        place = _content_place(file)
        try:
            return place not in self._damaged and file_system.size(f"{root}/{place}") == file.size
        except FileNotFoundError:
            return False

    def _upload(self, file: CachedFile, path: Path) -> bool:
        file_system, _ = self._open()
        incoming, digest = self._new_incoming(), new_hash(file.algorithm)
        with path.open("rb") as source, file_system.open(incoming, "wb") as copy:
            for block in iter(lambda: source.read(_BLOCK_BYTES), b""):
                digest.update(block)
                copy.write(block)
        if digest.hexdigest() != file.hash:
            file_system.rm_file(incoming)
            logger.warning("%s: not what was recorded of it, so it is not shared.", path)
            return False
        self._name(incoming, _content_place(file))
        self._damaged.discard(_content_place(file))
        return True

    def _new_incoming(self) -> str:
        file_system, root = self._open()
        file_system.makedirs(f"{root}/incoming", exist_ok=True)
        return f"{root}/incoming/{uuid.uuid4().hex}"

    def _name(self, incoming: str, place: str) -> None:
        """Makes an upload visible."""
        file_system, root = self._open()
        target = f"{root}/{place}"
        file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
        file_system.mv(incoming, target)

    def _read_run(self, fingerprint: str) -> CachedRun | None:
        file_system, root = self._open()
        try:
            text = file_system.cat_file(f"{root}/{_run_place(fingerprint)}")
        except FileNotFoundError:
            return None
        try:
            content = unseal(json.loads(text))
            if content is None or content.pop("format", None) != _FORMAT:
                return None
            run = restore(CachedRun, content)
        except (ValueError, RecursionError):  # ShapeError is a ValueError too.
            return None
        is_its_own = run.run.fingerprint == fingerprint
        return run if is_its_own and all(_are_safe(files) for files in run.files.values()) else None

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            file_system, root = fsspec.url_to_fs(self.url, **self._options)
            file_system.invalidate_cache()
            self._opened = file_system, root.rstrip("/")
        return self._opened

    def _try(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """Says once that the cache does not work, and goes on without."""
        if self._is_broken:
            return otherwise
        try:
            return action()
        except Exception as error:  # Each file system has errors of its own.
            self._is_broken = True
            logger.warning(
                "The cache %s cannot be used (%s: %s); this goes on without it.",
                self._shown,
                type(error).__name__,
                without_secrets(str(error)),
            )
            return otherwise

    @property
    def _shown(self) -> str:
        return without_secrets(self.url)


def share(
    cache: SharedCache, run: RunRecord, outputs: Iterable[Dataset], store: OutputStore
) -> bool:
    """Gives a run with its outputs to others, if others could use it.

    Args:
        cache: reached or not: what cannot be given is told, not raised.
        run: the run; its outputs are in place.
        outputs: the node's output datasets.
        store: looks at them.

    Returns:
        Whether the cache has it now. What is made of an input that cannot be told, or is an output
        whose content cannot, is of no use to anybody.
    """
    files: dict[str, dict[str, CachedFile]] = {}
    paths: dict[tuple[str, str], Path] = {}
    if UNKNOWN in run.components.values():
        return False
    for output in outputs:
        if output.storage is Storage.OPAQUE:
            return False
        contents = store.contents(output, run.outputs[output.name])
        for name, (algorithm, value, path) in (contents or {}).items():
            file = CachedFile(algorithm, value, path.stat().st_size)
            files.setdefault(output.name, {})[name] = file
            paths[output.name, name] = path
    return cache.store(CachedRun(run, files), paths)


def _content_place(file: CachedFile) -> str:
    return f"content/{file.hash[:2]}/{file.algorithm}-{file.hash}"


def _run_place(fingerprint: str) -> str:
    return f"runs/{fingerprint[:2]}/{fingerprint}.json"


def _are_safe(files: Mapping[str, CachedFile]) -> bool:
    """Whether names lead nowhere but below their folder, and hashes are words."""
    for name, file in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            return False
        if not (_WORD.fullmatch(file.hash) and _WORD.fullmatch(file.algorithm)):
            return False
    return True
