"""Section: what the model says, beside what people and its blind twin say."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_pipeline.corpus.records import Record, SegmentType
from mm1_pipeline.ground.formatting import MISSING, count, decimal, shorten
from mm1_pipeline.reporting.inputs import BLIND_SUFFIX, ReportInputs, metric_name
from mm1_pipeline.reporting.page import Example, Examples, ModelAnswer, Section, Tone
from mm1_pipeline.reporting.predictions import (
    Prediction,
    choose_examples,
    find_records,
    predictions_path,
    read_predictions,
)
from mm1_pipeline.reporting.thumbnails import thumbnail_uri

_GRADED = frozenset(
    {"vqa_accuracy", "textvqa_accuracy", "vizwiz_accuracy", "exact_match", "relaxed_accuracy"}
    | {"choice", "circular", "pope_f1", "mme_score", "mathvista"}
)
"""Metrics whose items are right or wrong; captions are only better or worse."""
_WITHOUT_IMAGES = frozenset({"acc", "acc_norm", "greedy_match", "alias_match"})
_RIGHT = 50.0
"""Score from which an answer counts as right: most people could have given it."""
_SHOWN_CAPTIONS = 2
_SHA256 = re.compile("[0-9a-f]{64}")
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
    if inputs.metric(task) in _WITHOUT_IMAGES:
        return None
    shots = inputs.shots(task)[0]
    predictions = _first_draw(predictions_path(directory, model, task, shots))
    if not predictions:
        return None
    graded = inputs.metric(task) in _GRADED
    threshold = _RIGHT if graded else statistics.median(row["score"] for row in predictions)
    pictured = [row for row in predictions if _has_copy(row, directory)]
    chosen = choose_examples(pictured or predictions, inputs.config.num_examples, threshold)
    keys = {row["key"] for row in chosen}
    blind = {
        row["key"]: row
        for row in _first_draw(predictions_path(directory, model + BLIND_SUFFIX, task, shots))
        if row["key"] in keys
    }
    ingested = [row for row in chosen if "image" not in row]
    records = find_records(inputs.records_dir, ingested) if inputs.records_dir and ingested else {}
    metric = metric_name(inputs.metric(task))
    return Examples(
        f"{task}, {shots} shots: {len(chosen)} of {count(len(predictions))}",
        tuple(
            Example(
                image=example_image(row, records.get(row["key"]), [directory]),
                question=example_question(row, records.get(row["key"])),
                references=_references(_named_options(row), graded),
                answers=(
                    _to_answer(model, row, metric, graded),
                    *(
                        _to_answer("blind twin", other, metric, graded)
                        for other in [blind.get(row["key"])]
                        if other
                    ),
                ),
            )
            for row in chosen
        ),
    )


def _first_draw(path: Path) -> list[Prediction]:
    """Predictions with the first set of shots: an item is shown once."""
    return [row for row in read_predictions(path) if not row.get("draw")]


def example_image(row: Prediction, record: Record | None, directories: Sequence[Path]) -> str:
    """The image a prediction is about, as a data URI; empty where it is not at hand.

    Args:
        row: the prediction; out of official files, it names its image.
        record: the ingested record, where there is one.
        directories: artifacts of predictions that may hold a small copy.
    """
    if record and record.images:
        return thumbnail_uri(record.images[0].bytes)
    for directory in directories:
        path = _copy_path(row, directory)
        if path is not None and path.is_file():
            return thumbnail_uri(path.read_bytes())
    return ""


def _copy_path(row: Prediction, directory: Path) -> Path | None:
    image = str(row.get("image") or "")
    # A name out of a file: nothing but a hash may become a path.
    return directory / "images" / f"{image}.jpg" if _SHA256.fullmatch(image) else None


def _has_copy(row: Prediction, directory: Path) -> bool:
    path = _copy_path(row, directory)
    return path is not None and path.is_file()


def _named_options(row: Prediction) -> list[str]:
    """The references, letters with the text of their option."""
    options = {f"{chr(ord('A') + place)}": text for place, text in enumerate(_options(row))}
    return [f"{ref}. {options[ref]}" if ref in options else str(ref) for ref in row["references"]]


def _options(row: Prediction) -> list[str]:
    found = row.get("options")
    return [str(text) for text in found] if isinstance(found, list) else []


def example_question(row: Prediction, record: Record | None) -> str:
    """What was asked: by the record, or by the prediction itself with its options."""
    if record is None:
        lines = [f"{chr(ord('A') + place)}. {text}" for place, text in enumerate(_options(row))]
        return shorten("\n".join([str(row.get("question") or ""), *lines]), _SHOWN_CHARACTERS * 2)
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


def _to_answer(name: str, row: Prediction, metric: str, graded: bool) -> ModelAnswer:
    text = str(row["processed_output"])
    return ModelAnswer(
        model=name,
        text=shorten(text, _SHOWN_CHARACTERS) if text else "(nothing)",
        score=_score_text(row, metric, graded),
        verdict=_verdict(row) if graded else "neutral",
    )


def _verdict(row: Prediction) -> Tone:
    return "good" if row["score"] >= _RIGHT else "bad"


def _score_text(row: Mapping[str, Any], metric: str, graded: bool) -> str:
    """Nothing where the mark says it all."""
    if row.get("failure"):
        return f"not asked: {row['failure']}"
    if graded and row["score"] in (0.0, 100.0):
        return ""
    return f"{metric} {decimal(row['score'])}"
