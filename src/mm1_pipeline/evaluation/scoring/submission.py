"""Files to hand in: what the servers of benchmarks with hidden answers take.

Failed items are handed in with an empty answer, because most servers want every question; rows
that have not even a number of their own are left out, and those whose number another row has.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from mm1_pipeline.config.evaluation import TaskConfig
from mm1_pipeline.config.task_formats import SubmissionFormat
from mm1_pipeline.evaluation.formats.choices import FILE_INDEX, LETTERS
from mm1_pipeline.evaluation.tasks import REPEATS, TaskItem


class Submission(NamedTuple):
    """A file to hand in."""

    ending: str
    """Of its name, with the dot."""
    text: str


def make_submission(
    task: TaskConfig, items: Sequence[TaskItem], answers: Sequence[str]
) -> Submission | None:
    """The answers as the benchmark's server takes them; None where the task names no format.

    Args:
        task: Names the format.
        items: All items, in the order of the benchmark's files.
        answers: The processed answer to each; empty where an item failed.
    """
    pairs = [
        (item, answer)
        for item, answer in zip(items, answers, strict=True)
        if REPEATS not in item.facts
    ]
    match task.submission:
        case None:
            return None
        case SubmissionFormat.ANSWERS:
            return _json({item.key: answer for item, answer in pairs})
        case SubmissionFormat.VQA:
            return _json(_numbered(pairs, "question_id", "answer"))
        case SubmissionFormat.DOCVQA:
            return _json(_numbered(pairs, "questionId", "answer"))
        case SubmissionFormat.VIZWIZ:
            return _json([{"image": item.key, "answer": answer} for item, answer in pairs])
        case SubmissionFormat.GQA:
            return _json([{"questionId": item.key, "prediction": answer} for item, answer in pairs])
        case SubmissionFormat.CAPTIONS:
            return _json(_numbered(pairs, "image_id", "caption"))
        case SubmissionFormat.TEXTCAPS:
            return _json([{"image_id": item.key, "caption": answer} for item, answer in pairs])
        case SubmissionFormat.MMBENCH:
            return _mmbench(pairs)


def _json(content: Any) -> Submission:
    return Submission(".json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _numbered(
    pairs: Sequence[tuple[TaskItem, str]], key: str, value: str
) -> list[dict[str, int | str]]:
    """Rows by the number of their question or image; an item without one is malformed."""
    return [{key: int(item.key), value: answer} for item, answer in pairs if item.key.isdecimal()]


def _mmbench(pairs: Sequence[tuple[TaskItem, str]]) -> Submission:
    """A row for each of the file, with the model's letter under `prediction`."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", *LETTERS, "prediction"])
    for item, answer in pairs:
        if index := item.facts.get(FILE_INDEX):
            options = [*item.options, *[""] * (len(LETTERS) - len(item.options))]
            writer.writerow([index, item.question, *options, answer])
    return Submission(".tsv", text.getvalue())
