"""Section: what was made, and whether it is better than not looking at the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.ground.formatting import (
    MISSING,
    compact,
    count,
    decimal,
    interval,
    signed,
)
from mm1_pipeline.reporting.charts import Dot, dot_chart
from mm1_pipeline.reporting.checkpoint import ModelSummary, summarize_model
from mm1_pipeline.reporting.differences import Difference
from mm1_pipeline.reporting.inputs import (
    BLIND_SUFFIX,
    FREQUENT,
    NORMAL_95,
    ReportInputs,
    metric_name,
)
from mm1_pipeline.reporting.page import (
    Block,
    Cell,
    Chart,
    Column,
    Section,
    Table,
    Tile,
    Tiles,
    without_repeats,
)
from mm1_pipeline.reporting.series import whole_training

_CONNECTORS = {
    "average_pooling": "average pooling",
    "attention_pooling": "attention pooling",
    "c_abstractor": "C-Abstractor",
    "mlp": "two-layer MLP",
}
_PARTS = {"vision": "image encoder", "connector": "connector", "decoder": "decoder"}


def headline_section(inputs: ReportInputs) -> Section | None:
    """The model, its size, and its scores beside its blind twin and the frequent answer."""
    blocks: list[Block] = [*_model_tiles(inputs), *_comparison(inputs)]
    if not blocks:
        return None
    return Section("headline", "At a glance", _lead(inputs), tuple(blocks))


def _lead(inputs: ReportInputs) -> str:
    if not inputs.main_model:
        return "No model has been scored yet."
    return (
        f"Shown is the model of the stage “{inputs.main_model}”. Its blind twin is the same model "
        "with every image blanked: only what it gains over the twin comes from seeing. The most "
        "frequent answer needs no model at all."
    )


def _model_tiles(inputs: ReportInputs) -> list[Block]:
    stage = inputs.main_model or next(iter(reversed([*inputs.models])), None)
    tiles = []
    if stage and (directory := inputs.models.get(stage)) and (model := summarize_model(directory)):
        tiles += _size_tiles(model)
    tiles += [_training_tile(inputs, name) for name, rows in inputs.training.items() if rows]
    return [Tiles(tuple(tiles))] if tiles else []


def _size_tiles(model: ModelSummary) -> list[Tile]:
    names = sorted(model.num_parameters, key=lambda name: [*_PARTS, name].index(name))
    parts = ", ".join(
        f"{_PARTS.get(name, name)} {compact(model.num_parameters[name])}" for name in names
    )
    tiles = [Tile("Parameters", compact(model.total_parameters), parts)]
    vision, connector = model.config.get("vision", {}), model.config.get("connector", {})
    if vision and connector:
        kind = _CONNECTORS.get(connector["kind"], connector["kind"].replace("_", " "))
        tiles.append(
            Tile(
                "Image",
                f"{vision['image_size']} px",
                f"{connector['num_tokens']} tokens, {kind}",
            )
        )
    return tiles


def _training_tile(inputs: ReportInputs, stage: str) -> Tile:
    rows = inputs.training[stage]
    text = whole_training(rows, "positions", "text")
    image = whole_training(rows, "positions", "image")
    return Tile(
        f"Trained: {stage}", f"{count(rows[-1]['step'])} steps", f"{compact(text + image)} tokens"
    )


def _comparison(inputs: ReportInputs) -> list[Block]:
    model = inputs.main_model
    if model is None:
        return []
    rivals = [name for name in (model + BLIND_SUFFIX, FREQUENT) if name in inputs.scored_models]
    charts = [_chart(inputs, task, [model, *rivals]) for task in inputs.tasks]
    return [_table(inputs, model), *charts]


def _table(inputs: ReportInputs, model: str) -> Table:
    columns = (
        Column("Task", numeric=False),
        Column("Shots"),
        Column("n"),
        Column(model),
        Column("blind twin"),
        Column("frequent answer"),
        Column("Gain from seeing"),
        Column("95 % interval"),
        Column("Does seeing help?", numeric=False),
    )
    rows = [
        _row(inputs, model, task, shots)
        for task in inputs.tasks
        for shots in inputs.shots(task)
        if inputs.score(model, task, shots)
    ]
    return Table(
        "Scores with their standard error",
        columns,
        without_repeats(rows),
        note="Gain from seeing: the model's score less its blind twin's, item by item, with the "
        "interval of a paired bootstrap over images.",
    )


def _row(inputs: ReportInputs, model: str, task: str, shots: int) -> tuple[Cell | str, ...]:
    score = inputs.score(model, task, shots)
    assert score is not None
    gain = Difference.read(score.get("gain_over_blind"))
    return (
        Cell(task, metric_name(inputs.metric(task))),
        str(shots),
        count(score["n"]),
        Cell(decimal(score["value"]), f"± {decimal(score['stderr'])}", strong=True),
        _baseline_cell(inputs, model + BLIND_SUFFIX, task, shots),
        _baseline_cell(inputs, FREQUENT, task, shots),
        signed(gain.mean) if gain else MISSING,
        interval(gain.low, gain.high) if gain else MISSING,
        Cell(gain.answer, verdict=gain.verdict) if gain else "",
    )


def _baseline_cell(inputs: ReportInputs, model: str, task: str, shots: int) -> Cell | str:
    score = inputs.score(model, task, shots)
    if score is None:
        return MISSING
    return Cell(decimal(score["value"]), f"± {decimal(score['stderr'])}")


def _chart(inputs: ReportInputs, task: str, models: list[str]) -> Chart:
    groups = {
        f"{shots} shots": [
            _dot(color, score)
            for color, name in enumerate(models)
            if (score := inputs.score(name, task, shots))
        ]
        for shots in inputs.shots(task)
    }
    svg = dot_chart(
        groups,
        title=f"Scores on {task} with 95 % intervals",
        label=metric_name(inputs.metric(task)),
        from_zero=True,
    )
    legend = tuple((name, color) for color, name in enumerate(models))
    return Chart(f"{task}, with 95 % intervals", svg, legend, wide=False)


def _dot(color: int, score: Mapping[str, Any]) -> Dot:
    half = NORMAL_95 * score["stderr"]
    return Dot(color, score["value"], score["value"] - half, score["value"] + half)
