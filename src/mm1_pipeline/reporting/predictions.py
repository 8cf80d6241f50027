"""Predictions of a run: reading them, and choosing which ones to show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.config.ingest import SourceSplit
from mm1_pipeline.corpus.records import SOURCES, Record, read_records, read_sources

Prediction = Mapping[str, Any]


def predictions_path(directory: Path, model: str, task: str, shots: int) -> Path:
    """Where the predictions of one model on one task lie."""
    return directory / model / f"{task}_{shots}shot.jsonl"


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The rows of one file of predictions, in order; none where there is no file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def choose_examples(
    predictions: Iterable[Prediction], number: int, threshold: float
) -> list[Prediction]:
    """Half good ones and half bad ones, each in an order that no one picked by hand.

    The order is that of a hash of the item's key, so it is the same for every model and every
    run, and knows nothing of the answer. Where one half falls short, the other fills up.

    Args:
        predictions: rows of one file.
        number: how many are wanted.
        threshold: score from which an answer counts as good.

    Returns:
        At most `number` rows, good and bad in turn.
    """
    ordered = sorted(predictions, key=lambda row: _shuffle_key(str(row["key"])))
    good = [row for row in ordered if row["score"] >= threshold]
    bad = [row for row in ordered if row["score"] < threshold]
    num_good = min(len(good), max(number - number // 2, number - len(bad)))
    num_bad = min(len(bad), number - num_good)
    return _in_turn(good[:num_good], bad[:num_bad])


def find_records(records_dir: Path, predictions: Iterable[Prediction]) -> dict[str, Record]:
    """The records that predictions are about, by key.

    A prediction names its record's key, which is unique in its source only; so the references
    must agree as well. Sources are read one record at a time.

    Args:
        records_dir: the artifact that contains `records/`.
        predictions: rows of one task.

    Returns:
        The records that were found; the others are left out.
    """
    wanted = {str(row["key"]): list(row["references"]) for row in predictions}
    found: dict[str, Record] = {}
    for source in _evaluation_sources(records_dir):
        for record in read_records(records_dir, source):
            if len(found) == len(wanted):
                return found
            if record.key in wanted and _references(record, wanted[record.key]):
                found.setdefault(record.key, record)
    return found


def _evaluation_sources(records_dir: Path) -> list[str]:
    if not (records_dir / SOURCES).is_file():
        return []
    found = read_sources(records_dir)
    return [name for name, (_, split) in found.items() if split == SourceSplit.EVALUATION]


def _references(record: Record, expected: list[str]) -> bool:
    """Whether a record has these references; captions lose empty ones when they are scored."""
    references = [text.strip() for text in record.references]
    return expected in (references, [text for text in references if text])


def _in_turn(first: list[Prediction], second: list[Prediction]) -> list[Prediction]:
    shorter = min(len(first), len(second))
    pairs = zip(first, second, strict=False)
    return [row for pair in pairs for row in pair] + first[shorter:] + second[shorter:]


def _shuffle_key(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
