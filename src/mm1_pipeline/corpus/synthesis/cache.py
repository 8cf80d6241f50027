"""Answers that were paid for once, by the hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mm1_pipeline.corpus.quarantine import Rejected
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, CaptionWriter


def content_hash(provenance: Mapping[str, Any], prompt: str) -> str:
    """SHA-256 of a writer's provenance and a prompt."""
    content = json.dumps([provenance, prompt], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


class CachedWriter:
    """Asks another writer only for what was not answered before. Failures are asked for again.

    Args:
        inner: Writes what is new.
        file: SQLite file; made if missing. None keeps nothing.
    """

    def __init__(self, inner: CaptionWriter, file: Path | None) -> None:
        self._inner = inner
        self.num_asked = 0
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(file or ":memory:")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS answers (hash TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID"
        )

    def __enter__(self) -> CachedWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

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
        hashes = [content_hash(provenance, self.prompt(request)) for request in requests]
        known = {digest: text for digest in hashes if (text := self._find(digest)) is not None}
        # Equal prompts are asked once.
        new = {h: r for h, r in zip(hashes, requests, strict=True) if h not in known}
        self.num_asked += len(new)
        answers = dict(zip(new, self._inner.write(list(new.values())), strict=True))
        kept = [(digest, text) for digest, text in answers.items() if isinstance(text, str)]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", kept)
        return [known[digest] if digest in known else answers[digest] for digest in hashes]

    def _find(self, digest: str) -> str | None:
        row = self._database.execute("SELECT text FROM answers WHERE hash = ?", (digest,))
        found = row.fetchone()
        return None if found is None else found[0]
