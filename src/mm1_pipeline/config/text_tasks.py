"""Parameters of text-only tasks: ARC, PIQA, LAMBADA and their like."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import model_validator
from pydantic_core import ArgsKwargs

from mm1_pipeline.config._base import MOST, Count, Shots, bounds, input_path, parameters
from mm1_pipeline.config.task_files import TEXT_FOLDER, complete_task


class TextFormat(StrEnum):
    """How the official files of a text benchmark are written; read by `evaluation.formats.text`."""

    files: frozenset[str]
    """Roles of the files that it consists of."""

    def __new__(cls, value: str, files: tuple[str, ...]) -> TextFormat:
        member = str.__new__(cls, value)
        member._value_ = value
        member.files = frozenset(files)
        return member

    ARC = "arc", ("questions",)
    """ARC-<Easy|Challenge>-<Split>.jsonl."""
    PIQA = "piqa", ("questions", "labels")
    """Questions as JSON lines, and a file with a label a line."""
    LAMBADA = "lambada", ("questions",)
    """JSON lines with `text`."""
    WINOGRANDE = "winogrande", ("questions",)
    """<split>.jsonl."""
    HELLASWAG = "hellaswag", ("questions",)
    """hellaswag_<split>.jsonl."""
    SCIQ = "sciq", ("questions",)
    """<split>.json."""
    TRIVIAQA = "triviaqa", ("questions",)
    """<set>-<split>.json with `Data`."""
    WEBQS = "webqs", ("questions",)
    """webquestions.examples.<split>.json."""


class TextMetric(StrEnum):
    """How a text task is scored, as lm-evaluation-harness defines it; all times 100."""

    ACC = "acc"
    """The right option has the highest log-likelihood."""
    ACC_NORM = "acc_norm"
    """As `acc`, per character of the option."""
    GREEDY = "greedy_match"
    """The right continuation is what greedy decoding writes; with several, any of them."""
    ALIAS = "alias_match"
    """What greedy decoding writes is one of the names, but for case and punctuation."""


@parameters
class TextTaskConfig:
    """One text task: data, prompt, metric. `task` names a task file, as in `TaskConfig`.

    Source: MM1, Evaluation (which text tasks; unconfirmed); prompts and metrics are those of
    lm-evaluation-harness 0.4.
    """

    format: TextFormat
    metric: TextMetric
    files: dict[str, str] | None = input_path(default=None)
    """Files by role: `questions`, and `labels` for PIQA."""
    shot_files: dict[str, str] | None = input_path(default=None)
    """Files that shots come from; the task's own if not given."""
    task: str | None = None
    """A task file of the package by name, or the path of one's own."""
    title: str = ""
    unconfirmed: tuple[str, ...] = ()
    """What the project only believes to be the paper's way."""
    shots: tuple[Shots, ...] = (0,)
    stop: tuple[str, ...] = ("\n", ".", ",")
    """Strings at which a written answer ends."""
    max_new_tokens: Count = 32
    """Tokens after which a written answer is cut off."""
    max_items: Annotated[int, bounds(ge=2, le=MOST)] | None = None
    """Scores only the first items (after a seeded shuffle); None scores all. One item has no
    standard error."""

    @model_validator(mode="before")
    @classmethod
    def _with_task_file(cls, given: Any) -> Any:
        match given:
            case {"task": str()}:
                return complete_task(given, TEXT_FOLDER)
            case ArgsKwargs(kwargs={"task": str()} as named):
                return complete_task(named, TEXT_FOLDER)
        return given

    def __post_init__(self) -> None:
        needed = self.format.files
        for name, files in (("files", self.files or {}), ("shot_files", self.shot_files)):
            if files is not None and set(files) != needed:
                raise ValueError(
                    f"{name}: found {sorted(files)}, expected {sorted(needed)}, of which the "
                    f"format {self.format} consists; give each the path of a file."
                )
        if not self.shots or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots: found {self.shots}, expected different numbers from 0.")
