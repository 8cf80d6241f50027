"""Tables that Kedro-Viz shows of an artifact: a few rows, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from kedro_rerun.artifacts import Artifact

_ROWS_A_PART = 3
"""Of a source, or of a model's answers to a task."""
_MAX_ROWS = 60
_MAX_CHARACTERS = 160
Table = dict[str, Any]
"""As pandas writes one with `orient="split"`, which is what Kedro-Viz reads."""


def preview(artifact: Artifact, kind: str) -> Table:
    """A table of an artifact.

    Args:
        artifact: A published version.
        kind: What it is, as the catalog says.

    Returns:
        Records, answers, or what is known of a model; of anything else what its manifest counts.
    """
    return _TABLES.get(kind, _counts)(artifact)


def _records(artifact: Artifact) -> Table:
    from mm1_pipeline.corpus.records import RECORDS, read_parts, read_sources

    def rows() -> Iterator[list[Any]]:
        for source, (kind, split) in read_sources(artifact.path).items():
            records = read_parts(artifact.path / RECORDS / source, with_bytes=False)
            for record in islice(records, _ROWS_A_PART):
                text = " ".join(segment.text for segment in record.segments if segment.text)
                images = len(record.images)
                yield [source, kind.value, split.value, record.key, images, _short(text)]

    return _table(("source", "kind", "split", "key", "images", "text"), rows())


def _predictions(artifact: Artifact) -> Table:
    from mm1_pipeline.reporting.predictions import read_predictions

    def rows() -> Iterator[list[Any]]:
        for path in sorted(artifact.path.glob("*/*.jsonl")):
            for row in islice(read_predictions(path), _ROWS_A_PART):
                expected = _short("; ".join(map(str, row["references"])))
                answer = _short(str(row["processed_output"]))
                yield [path.parent.name, path.stem, row["key"], answer, expected, row["score"]]

    return _table(("model", "task", "item", "answer", "expected", "score"), rows())


def _model(artifact: Artifact) -> Table:
    from mm1_pipeline.reporting.checkpoint import CONFIG, WEIGHTS, count_parameters

    rows = [*_facts(artifact)]
    if (weights := artifact.path / WEIGHTS).is_file():
        counted = count_parameters(weights)
        rows += [("parameters", sum(counted.values()))]
        rows += [(f"parameters: {part}", number) for part, number in counted.items()]
    if (config := artifact.path / CONFIG).is_file():
        rows += _leaves(json.loads(config.read_text(encoding="utf-8")))
    return _table(("what", "value"), map(list, rows))


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, words and switches of nested settings, by dotted path."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        elif isinstance(value, str | int | float):
            yield f"{path}{name}", value


def _counts(artifact: Artifact) -> Table:
    return _table(("what", "value"), map(list, _facts(artifact)))


def _facts(artifact: Artifact) -> Iterator[tuple[str, Any]]:
    """What a manifest says, and how large the files are."""
    yield "version", str(artifact.manifest["fingerprint"])[:12]
    for name, value in artifact.manifest["counts"].items():
        if isinstance(value, Mapping):
            yield from ((f"{name}: {inner}", _short(str(found))) for inner, found in value.items())
        else:
            yield name, value
    files = artifact.manifest["files"]
    yield "files", len(files)
    yield "bytes", sum(file["size"] for file in files.values())


def _table(columns: Iterable[str], rows: Iterable[list[Any]]) -> Table:
    data = list(islice(rows, _MAX_ROWS))
    return {"index": list(range(len(data))), "columns": list(columns), "data": data}


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


_TABLES: Mapping[str, Callable[[Artifact], Table]] = {
    "records": _records,
    "predictions": _predictions,
    "model": _model,
    "vision_encoder": _model,
    "text_decoder": _model,
}
