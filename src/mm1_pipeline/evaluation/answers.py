"""What models answered, and a log of it from which a killed evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMAT_VERSION = 1


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
    cut off. A log of another making is not continued.

    Args:
        path: The file; its folder is made.
        made_with: JSON values that decide the answers besides the prompt: model, limits. Another
            value than the log's first line makes a new log.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self._path = path
        header = {"format_version": FORMAT_VERSION, "made_with": dict(made_with)}
        self._header = json.loads(json.dumps(header))  # tuples become lists, as when read
        self._answers = self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, prompt_sha256: str) -> Answer | None:
        """The answer to a prompt, if it was logged."""
        return self._answers.get(prompt_sha256)

    def append(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Logs a group of answers by the SHA-256 of their prompts."""
        new = dict(answers)
        lines = [_line({"prompt_sha256": key, **answer._asdict()}) for key, answer in new.items()]
        with self._path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._answers |= new

    def _read(self) -> dict[str, Answer]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = [_parsed(line) for line in whole.splitlines()]
        if not lines or lines[0] != self._header or None in lines:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(_line(self._header))
            return {}
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        return {row["prompt_sha256"]: Answer(row["text"], row["failure"]) for row in lines[1:]}


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode("ascii") + b"\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
