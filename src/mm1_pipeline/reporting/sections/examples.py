"""Section: what the model says, beside what people and its blind twin say."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_pipeline.corpus.records import Record, SegmentType
from mm1_pipeline.reporting.formatting import MISSING, count, decimal, shorten
from mm1_pipeline.reporting.inputs import BLIND_SUFFIX, ReportInputs, metric_name
from mm1_pipeline.reporting.page import Answer, Example, Examples, Section, Verdict
from mm1_pipeline.reporting.predictions import (
    Prediction,
    choose_examples,
    find_records,
    predictions_path,
    read_predictions,
)
from mm1_pipeline.reporting.thumbnails import thumbnail_uri

_GRADED = "vqa_accuracy"
"""The metric whose items are right or wrong; captions are only better or worse."""
_RIGHT = 50.0
"""Score from which an answer counts as right: most people could have given it."""
_SHOWN_CAPTIONS = 2
_SHOWN_CHARACTERS = 140


def examples_section(inputs: ReportInputs) -> Section | None:
    """Predictions of the main model, chosen by a rule and not by hand."""
    directory, model = inputs.predictions_dir, inputs.main_model
    if directory is None or model is None:
        return None
    blocks = [
        block
        for task in inputs.tasks
        if (block := _task_examples(inputs, directory, model, task)) is not None
    ]
    if not blocks:
        return None
    return Section(
        "examples",
        "Examples",
        "Half of them right or above the median, half wrong or below, as far as there are enough, "
        "so they do not show how often the model is right. Items are taken in the order of a "
        "hash of their key: nobody picked them.",
        tuple(blocks),
    )


def _task_examples(inputs: ReportInputs, directory: Path, model: str, task: str) -> Examples | None:
    shots = inputs.shots(task)[0]
    predictions = list(read_predictions(predictions_path(directory, model, task, shots)))
    if not predictions:
        return None
    graded = inputs.metric(task) == _GRADED
    threshold = _RIGHT if graded else statistics.median(row["score"] for row in predictions)
    chosen = choose_examples(predictions, inputs.config.num_examples, threshold)
    keys = {row["key"] for row in chosen}
    blind = {
        row["key"]: row
        for row in read_predictions(predictions_path(directory, model + BLIND_SUFFIX, task, shots))
        if row["key"] in keys
    }
    records = find_records(inputs.records_dir, chosen) if inputs.records_dir else {}
    metric = metric_name(inputs.metric(task))
    return Examples(
        f"{task}, {shots} shots: {len(chosen)} of {count(len(predictions))}",
        tuple(
            Example(
                image=_image(records.get(row["key"])),
                question=_question(records.get(row["key"])),
                references=_references(row["references"], graded),
                answers=(
                    _answer(model, row, metric, graded),
                    *(
                        _answer("blind twin", other, metric, graded)
                        for other in [blind.get(row["key"])]
                        if other
                    ),
                ),
            )
            for row in chosen
        ),
    )


def _image(record: Record | None) -> str:
    return thumbnail_uri(record.images[0].bytes) if record and record.images else ""


def _question(record: Record | None) -> str:
    if record is None:
        return ""
    texts = [segment.text or "" for segment in record.segments if segment.type == SegmentType.TEXT]
    return shorten("\n".join(texts).strip(), _SHOWN_CHARACTERS)


def _references(references: Sequence[str], graded: bool) -> tuple[str, ...]:
    """The captions of people; of ten answers, the one that most of them gave."""
    if not references:
        return (MISSING,)
    if not graded:
        rest = len(references) - _SHOWN_CAPTIONS
        more = (f"and {rest} more",) if rest > 0 else ()
        return (*(shorten(text, _SHOWN_CHARACTERS) for text in references[:_SHOWN_CAPTIONS]), *more)
    answer, votes = Counter(references).most_common(1)[0]
    agreed = "" if votes == len(references) else f" ({votes} of {len(references)} people)"
    return (shorten(answer, _SHOWN_CHARACTERS) + agreed,)


def _answer(name: str, row: Prediction, metric: str, graded: bool) -> Answer:
    text = str(row["processed_output"])
    return Answer(
        model=name,
        text=shorten(text, _SHOWN_CHARACTERS) if text else "(nothing)",
        score=_score_text(row, metric, graded),
        verdict=_verdict(row) if graded else "neutral",
    )


def _verdict(row: Prediction) -> Verdict:
    return "good" if row["score"] >= _RIGHT else "bad"


def _score_text(row: Mapping[str, Any], metric: str, graded: bool) -> str:
    """Nothing where the mark says it all."""
    if row.get("failure"):
        return f"not asked: {row['failure']}"
    if graded and row["score"] in (0.0, 100.0):
        return ""
    return f"{metric} {decimal(row['score'])}"
