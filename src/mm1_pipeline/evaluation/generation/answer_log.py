"""What models answered, in a log from which a killed evaluation goes on.

Rows are added to a file while an evaluation works, each with its own checksum. What is logged is
taken for what was answered, so a row that was edited or damaged must not be: it is set aside, said,
and made again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mm1_pipeline.ground.files import read_sealed, replacing, sealed_line

logger = logging.getLogger(__name__)


class RowLog:
    """A file of JSON objects, a line each.

    Half a line at the end, from a killed run, is cut off. Whole lines that are not as they were
    written go to `<name>.damaged` beside the file.

    Args:
        path: The file; its folder is made when the first row is added.
        header: First row, of what decides the others; a log of another header is begun anew.
            None has no header.
    """

    def __init__(self, path: Path, header: Mapping[str, Any] | None = None) -> None:
        self.path = path
        # Tuples become lists, as when read.
        self._header = None if header is None else json.loads(json.dumps(dict(header)))
        self.rows = self._read()
        """Those of earlier runs, in their order."""

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows in one write; they are on the disk when it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"".join(map(sealed_line, rows)))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[dict[str, Any]]:
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines()
        parsed = [read_sealed(line) for line in lines]
        rows = [row for row in parsed if row is not None]
        if self._header is not None and (not parsed or parsed[0] != self._header):
            # Without its header nobody can tell what other rows belong to.
            if parsed and parsed[0] is None:
                self._set_aside(lines, "its first row is damaged; everything is made again")
            self._write([self._header])
            return []
        if len(rows) < len(lines):
            damaged = [line for line, row in zip(lines, parsed, strict=True) if row is None]
            told = f"{len(damaged)} of {len(lines)} rows are damaged and are made again"
            self._set_aside(damaged, told)
            self._write(rows)
        elif len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return rows if self._header is None else rows[1:]

    def _set_aside(self, lines: list[bytes], told: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        with aside.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))
        logger.warning("%s: %s; they are in %s.", self.path, told, aside.name)

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(map(sealed_line, rows)))


FORMAT_VERSION = 2


class Answer(NamedTuple):
    """What a model wrote after one prompt."""

    text: str
    """Raw; empty if the prompt could not be asked."""
    failure: str | None = None
    """Why the prompt could not be asked; None if it could."""


class AnswerLog:
    """Answers of one model to one set of prompts, a JSON line each, in the order of completion.

    A line is the SHA-256 of the prompt with its answer. Lines are added in whole groups and
    reach the disk before the next group begins; half a line at the end, from a killed run, is
    cut off, and damaged ones are asked again. A log of another making is not continued.

    Args:
        path: The file; its folder is made.
        made_with: JSON values that decide the answers besides the prompt: model, limits. Another
            value than the log's first line makes a new log.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        header = {"format_version": FORMAT_VERSION, "made_with": dict(made_with)}
        self._log = RowLog(path, header)
        self._answers = {
            row["prompt_sha256"]: Answer(row["text"], row["failure"]) for row in self._log.rows
        }

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, prompt_sha256: str) -> Answer | None:
        """The answer to a prompt, if it was logged."""
        return self._answers.get(prompt_sha256)

    def append(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Logs a group of answers by the SHA-256 of their prompts."""
        new = dict(answers)
        self._log.append({"prompt_sha256": key, **answer._asdict()} for key, answer in new.items())
        self._answers |= new
