from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import plotly.graph_objects as go
import pytest

from mm1_pipeline.reporting.figures import (
    ingest_figure,
    loss_curves_figure,
    mixture_figure,
    scores_figure,
    shard_fill_figure,
)
from mm1_pipeline.reporting.series import MAX_POINTS

ROWS = [
    {"step": 1, "loss": 4.0, "losses": {"caption": 3.0, "text": 5.0}},
    {"step": 2, "loss": 3.0, "losses": {"caption": 2.0}},
]
INGEST = {
    "sources": {
        "web": {"read": 10, "kept": 6, "rejected": {"duplicate": 3, "no_images": 1}},
        "text": {"read": 5, "kept": 4, "rejected": {"duplicate": 1}},
    }
}
SHARDS = {"sources": {"web": {"train": {"fill": 0.9}, "validation": {"fill": 0.5}}}}
MIXTURE = {
    "streams": {
        "caption": {"share": 0.9, "sources": {"a": {"weight": 0.25}, "b": {"weight": 0.75}}},
        "text": {"share": 0.1, "sources": {"c": {"weight": 1.0}}},
    }
}
EVALUATION = {
    "models": {
        "pretrain": {
            "tasks": {
                "vqa": {"metric": "m", "shots": {"0": {"value": 50.0, "stderr": 2.0, "n": 9}}}
            }
        },
        "frequent": {
            "tasks": {
                "vqa": {"metric": "m", "shots": {"0": {"value": 40.0, "stderr": 1.0, "n": 9}}}
            }
        },
    }
}


def _series(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


@pytest.mark.parametrize(
    "figure",
    [
        loss_curves_figure(ROWS),
        ingest_figure(INGEST),
        shard_fill_figure(SHARDS),
        mixture_figure(MIXTURE),
        scores_figure(EVALUATION),
    ],
)
def test_figures_are_json_that_plotly_accepts(figure: dict[str, Any]) -> None:
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
    taken: Any = go.Figure(figure)
    assert len(taken.data) == len(figure["data"])


def test_loss_curves_have_a_line_a_stream_with_gaps() -> None:
    lines = _series(loss_curves_figure(ROWS))
    assert lines["all"]["y"] == [4.0, 3.0]
    assert lines["caption"]["y"] == [3.0, 2.0]
    assert lines["text"]["y"] == [5.0, None]
    assert lines["text"]["x"] == [1, 2]


def test_long_trainings_are_thinned() -> None:
    rows = [{"step": step, "loss": 1.0, "losses": {}} for step in range(5_000)]
    assert len(_series(loss_curves_figure(rows))["all"]["x"]) == MAX_POINTS


def test_ingest_bars_stack_to_what_was_read() -> None:
    bars = _series(ingest_figure(INGEST))
    assert bars["kept"]["y"] == [6, 4]
    assert bars["duplicate"]["y"] == [3, 1]
    assert [sum(values) for values in zip(*(b["y"] for b in bars.values()), strict=True)] == [10, 5]


def test_shares_and_fill_are_per_cent() -> None:
    bars = _series(mixture_figure(MIXTURE))
    assert {name: (bar["x"], bar["y"]) for name, bar in bars.items()} == {
        "a": (["caption"], [22.5]),
        "b": (["caption"], [pytest.approx(67.5)]),
        "c": (["text"], [10.0]),
    }
    assert _series(shard_fill_figure(SHARDS))["validation"]["y"] == [50.0]


def test_scores_have_95_percent_intervals() -> None:
    bar = _series(scores_figure(EVALUATION))["pretrain"]
    assert bar["x"] == ["vqa, 0 shots"]
    assert bar["error_y"]["array"] == [pytest.approx(3.92)]


def test_figures_import_without_plotly_and_matplotlib() -> None:
    code = (
        "import sys, mm1_pipeline.reporting.figures;"
        "print([m for m in ('plotly', 'matplotlib', 'torch', 'jinja2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
