"""Answers that were paid for once, by the hash of everything they depend on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mm1_pipeline.corpus.records import RecordImage
from mm1_pipeline.corpus.synthesis.concepts import ConceptSource
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, CaptionWriter
from mm1_pipeline.ground.rejects import Rejected

Asked = TypeVar("Asked")


def content_hash(provenance: Mapping[str, Any], prompt: str) -> str:
    """SHA-256 of a writer's provenance and a prompt."""
    content = json.dumps([provenance, prompt], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerStore:
    """Answers by hash, on disk.

    Args:
        file: SQLite file; made if missing. None keeps them in memory only.
    """

    def __init__(self, file: Path | None) -> None:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._database = sqlite3.connect(file or ":memory:")
        with self._as_of_files():
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (hash TEXT PRIMARY KEY, text TEXT)"
                " WITHOUT ROWID"
            )

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def find(self, digest: str) -> str | None:
        """The answer of a hash."""
        row = self._database.execute("SELECT text FROM answers WHERE hash = ?", (digest,))
        found = row.fetchone()
        return None if found is None else found[0]

    def keep(self, answers: Mapping[str, str]) -> None:
        """Stores answers by hash; all of them, or none if the process is killed."""
        with self._as_of_files(), self._database:
            rows = answers.items()
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _as_of_files(self) -> Iterator[None]:
        """Errors of a full disk as those of any other file, which are told in words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file)) from error


class CachedWriter:
    """Asks another writer only for what was not answered before. Failures are asked for again.

    A writer without a model is asked always: it costs nothing, and its code, which a rerun may be
    for, is no part of the digest.

    Args:
        inner: Writes what is new.
        store: Keeps a text by the digest of all that it was made from.
    """

    def __init__(self, inner: CaptionWriter, store: AnswerStore) -> None:
        self._inner, self._store = inner, store
        self.num_asked = 0

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the inner writer."""
        return self._inner.provenance

    def prompt(self, request: CaptionRequest) -> str:
        """Of the inner writer."""
        return self._inner.prompt(request)

    def write(self, requests: list[CaptionRequest]) -> list[str | Rejected]:
        """A caption for each request; what is new is stored before this returns."""
        provenance = self.provenance
        if provenance["model"] is None:
            return self._write(requests)
        hashes = [content_hash(provenance, self.prompt(request)) for request in requests]
        return _ask_new(self._store, hashes, requests, self._write)

    def _write(self, requests: list[CaptionRequest]) -> list[str | Rejected]:
        self.num_asked += len(requests)
        return self._inner.write(requests)


class CachedConcepts:
    """Asks a source of concepts only for images that it has not seen before.

    Args:
        inner: Says what is new.
        store: Keeps it, if the source has a provenance.
    """

    def __init__(self, inner: ConceptSource, store: AnswerStore) -> None:
        self._inner, self._store = inner, store

    @property
    def names(self) -> Collection[str]:
        """Of the inner source."""
        return self._inner.names

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Of the inner source."""
        return self._inner.provenance

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        """The concepts of each image; what is new is stored before this returns."""
        provenance = self.provenance
        if provenance is None:
            return self._inner.detect(images)
        hashes = [content_hash(provenance, image.sha256) for image in images]
        told = _ask_new(self._store, hashes, images, self._detect)
        return [json.loads(text) if isinstance(text, str) else text for text in told]

    def _detect(self, images: list[RecordImage]) -> list[str | Rejected]:
        told = self._inner.detect(images)
        return [said if isinstance(said, Rejected) else json.dumps(said) for said in told]


def _ask_new(
    store: AnswerStore,
    hashes: Sequence[str],
    asked: Sequence[Asked],
    ask: Callable[[list[Asked]], Sequence[str | Rejected]],
) -> list[str | Rejected]:
    """Answers by hash: those that the store has, and new ones, which it gets unless they failed."""
    known = {h: text for h in hashes if (text := store.find(h)) is not None}
    # What is equal is asked once.
    new = {h: thing for h, thing in zip(hashes, asked, strict=True) if h not in known}
    answers = dict(zip(new, ask(list(new.values())) if new else (), strict=True))
    store.keep({h: text for h, text in answers.items() if isinstance(text, str)})
    return [known[h] if h in known else answers[h] for h in hashes]
