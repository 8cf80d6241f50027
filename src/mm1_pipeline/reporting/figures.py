"""Plotly figures as plain dictionaries, for previews in Kedro-Viz.

A figure is JSON of the form {"data": [...], "layout": {...}}; plotly itself is not imported, so
the functions are cheap to load and their results can be stored as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mm1_pipeline.reporting.inputs import NORMAL_95
from mm1_pipeline.reporting.series import MAX_POINTS, stream_names, thin

Figure = dict[str, Any]


def loss_curves_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss of every stream over the steps of one training.

    Args:
        rows: rows of training_<stage>.jsonl.

    Returns:
        A figure with one line a stream, and one of the whole loss.
    """
    kept = thin(rows, MAX_POINTS)
    steps = [row["step"] for row in kept]
    lines = [_line("all", steps, [row["loss"] for row in kept])]
    lines += [
        _line(name, steps, [row["losses"].get(name) for row in kept]) for name in stream_names(rows)
    ]
    return _figure("Training loss", lines, x="step", y="loss (nats a token)")


def shard_fill_figure(shard_report: Mapping[str, Any]) -> Figure:
    """Share of positions that hold a token and not padding, per source.

    Args:
        shard_report: content of shard_report.json.

    Returns:
        A bar chart with one group a source: train and validation.
    """
    sources = shard_report["sources"]
    bars = [
        _bar(split, list(sources), [100 * source[split]["fill"] for source in sources.values()])
        for split in ("train", "validation")
    ]
    return _figure("Fill of packed sequences", bars, x="source", y="fill (%)")


def mixture_figure(mixture: Mapping[str, Any]) -> Figure:
    """Share of every stream in a global batch, made of its sources.

    Args:
        mixture: content of mixture.json, the summary of the mixture snapshot; empty for a part
            that is not trained.

    Returns:
        A stacked bar chart with one bar a stream; sources draw their expected share of it.
    """
    bars = [
        _bar(source, [stream], [100 * entry["share"] * drawn["weight"]])
        for stream, entry in mixture.get("streams", {}).items()
        for source, drawn in entry["sources"].items()
    ]
    return _figure("Mixture, by sequence", bars, x="stream", y="share (%)", barmode="stack")


def ingest_figure(ingest_report: Mapping[str, Any]) -> Figure:
    """Records kept and rejected, by reason, per source.

    Args:
        ingest_report: content of ingest_report.json.

    Returns:
        A stacked bar chart with one bar a source.
    """
    sources = ingest_report["sources"]
    names = list(sources)
    reasons = dict.fromkeys(reason for source in sources.values() for reason in source["rejected"])
    bars = [_bar("kept", names, [source["kept"] for source in sources.values()])]
    bars += [
        _bar(reason, names, [source["rejected"].get(reason, 0) for source in sources.values()])
        for reason in reasons
    ]
    return _figure("Records", bars, x="source", y="records", barmode="stack")


def scores_figure(evaluation: Mapping[str, Any]) -> Figure:
    """Scores of every model, task and number of shots, with 95 % intervals.

    Args:
        evaluation: content of evaluation.json.

    Returns:
        A bar chart with one colour a model and one group a task and number of shots.
    """
    bars = []
    for model, entry in evaluation["models"].items():
        places, values, errors = [], [], []
        for task, result in entry["tasks"].items():
            for shots, score in result["shots"].items():
                places.append(f"{task}, {shots} shots")
                values.append(score["value"])
                errors.append(NORMAL_95 * score["stderr"])
        bars.append(_bar(model, places, values) | {"error_y": {"type": "data", "array": errors}})
    return _figure("Scores with 95 % intervals", bars, x="task", y="score")


def _line(name: str, x: list[Any], y: list[Any]) -> Figure:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y}


def _bar(name: str, x: list[str], y: list[float]) -> Figure:
    return {"type": "bar", "name": name, "x": x, "y": y}


def _figure(
    title: str, data: Iterable[Figure], *, x: str, y: str, barmode: str = "group"
) -> Figure:
    layout = {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
        "barmode": barmode,
    }
    return {"data": list(data), "layout": layout}
