"""What models answered, and a log of it from which a killed evaluation goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mm1_pipeline.evaluation.row_log import RowLog

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
