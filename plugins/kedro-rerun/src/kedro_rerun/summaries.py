"""Summaries of source files, kept between processes."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from kedro_rerun.files import hash_text, read_json, seal, unseal, write_cache
from kedro_rerun.scopes import Reference
from kedro_rerun.source import SUMMARY_VERSION, ModuleSummary, Part, summarize


class SummaryCache:
    """Summaries by content of the file, so that no clock and no path can mislead it.

    Args:
        path: where they are kept; None keeps nothing.
        roots: top-level packages whose modules strings may name.
    """

    def __init__(self, path: Path | None, roots: Collection[str]) -> None:
        self._path = path
        self._roots = roots
        self._version = [SUMMARY_VERSION, sorted(roots)]
        self._entries: dict[str, dict] = {}
        self._used: dict[str, dict] = {}
        stored = unseal(read_json(path)) if path is not None else None
        if stored is not None and stored.get("version") == self._version:
            self._entries = stored["entries"]

    def get(self, path: Path, module: str) -> ModuleSummary:
        """Summary of a source file, kept or made."""
        source = path.read_text(encoding="utf-8")
        is_package = path.name == "__init__.py"
        key = hash_text(f"{module}\0{is_package}\0{source}")
        entry = self._entries.get(key)
        if entry is None:
            summary = summarize(source, module, is_package, self._roots)
            self._used[key] = _dump(summary)
            return summary
        self._used[key] = entry
        return _restore(entry)

    def save(self) -> None:
        """Writes the summaries when there are new ones."""
        if self._path is not None and not self._used.keys() <= self._entries.keys():
            content = {"version": self._version, "entries": {**self._entries, **self._used}}
            write_cache(self._path, json.dumps(seal(content)))


def _dump(summary: ModuleSummary) -> dict:
    return {
        **vars(summary),
        "definitions": {
            name: [vars(part) for part in parts] for name, parts in summary.definitions.items()
        },
        "effects": [vars(part) for part in summary.effects],
    }


def _restore(entry: dict) -> ModuleSummary:
    return ModuleSummary(
        definitions={
            name: [_restore_part(part) for part in parts]
            for name, parts in entry["definitions"].items()
        },
        effects=[_restore_part(part) for part in entry["effects"]],
        imports={
            name: [(module, attribute) for module, attribute in targets]
            for name, targets in entry["imports"].items()
        },
        stars=entry["stars"],
        executed=entry["executed"],
    )


def _restore_part(part: dict) -> Part:
    references = tuple(Reference(*reference) for reference in part["references"])
    return Part(
        hash=part["hash"],
        references=references,
        decorators=tuple(part["decorators"]),
        mutates=part["mutates"],
        dynamic=part["dynamic"],
        paths=tuple(part["paths"]),
        locates=part["locates"],
    )
