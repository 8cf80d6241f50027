"""Section: whether the experts share the work, and what they are worth at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm1_pipeline.ground.formatting import compact, count, decimal, signed
from mm1_pipeline.reporting.charts import THIRD, Line, line_chart, stacked_bars
from mm1_pipeline.reporting.checkpoint import ModelSummary, summarize_model
from mm1_pipeline.reporting.inputs import ReportInputs, Rows
from mm1_pipeline.reporting.page import Block, Cell, Chart, Column, Section, Table
from mm1_pipeline.reporting.series import MAX_POINTS, thin, whole_training

EXPERTS, CONTROL = "upcycle", "dense_control"
_LAST_ROWS = 10
"""Steps at the end of a training over which loads are averaged."""
_DIGITS = 3
_MAX_COLORS = 8


def experts_section(inputs: ReportInputs) -> Section | None:
    """Load of each expert by layer and stream, the router over time, and dense beside MoE."""
    blocks: list[Block] = []
    for stage, rows in inputs.training.items():
        if rows and "router_load" in rows[-1].get("terms", {}):
            blocks += [_load_chart(stage, rows), *_router_charts(stage, rows)]
    if table := _comparison(inputs):
        blocks.append(table)
    if not blocks:
        return None
    return Section(
        "experts",
        "Mixture of experts",
        "Equal bars mean that the experts share the work. An entropy near its start means that "
        "the router does not tell positions apart; a dead expert was chosen by no position of a "
        "batch. Source: MM1, Mixture of experts (load balance 0.01, router z-loss 0.001).",
        tuple(blocks),
    )


def _load_chart(stage: str, rows: Rows) -> Chart:
    """One bar a layer and stream, made of the experts' shares."""
    last = rows[-_LAST_ROWS:]
    streams = list(rows[-1]["losses"])
    by_stream = [row["terms"]["router_load_by_stream"] for row in last]
    num_layers, num_groups = len(by_stream[0]), len(by_stream[0][0])
    names = streams if len(streams) == num_groups else [str(n) for n in range(num_groups)]
    bars = {
        f"layer {layer + 1}, {names[group]}": _mean([load[layer][group] for load in by_stream])
        for layer in range(num_layers)
        for group in range(num_groups)
    }
    num_experts = len(next(iter(bars.values())))
    svg = stacked_bars(
        bars,
        title=f"Share of the choices that each expert of {stage} got, by layer and stream",
        colors=[expert % _MAX_COLORS for expert in range(num_experts)],
        labels=[f"most {100 * max(shares):.0f} %" for shares in bars.values()],
    )
    legend = tuple((f"expert {n + 1}", n) for n in range(min(num_experts, _MAX_COLORS)))
    return Chart(f"{stage}: load of the experts in the last {len(last)} rows", svg, legend)


def _router_charts(stage: str, rows: Rows) -> list[Chart]:
    captions = {
        "load_balance": "Load balance (1 is even)",
        "router_entropy": "Router entropy, nats",
        "router_dead": "Dead experts",
    }
    charts = []
    for term, caption in captions.items():
        svg = line_chart(
            _lines(rows, term),
            title=f"{caption} of {stage}",
            width=THIRD,
            height=1.9,
            number="{:g}".format,
            from_zero=True,
        )
        charts.append(Chart(caption, svg, wide=False))
    return charts


def _lines(rows: Rows, term: str) -> list[Line]:
    """A line for a number, or one for each layer's."""
    kept = thin(rows, MAX_POINTS)
    steps = [row["step"] for row in kept]
    values = [row["terms"][term] for row in kept]
    by_layer = [[value] for value in values] if isinstance(values[0], float) else values
    return [
        Line(layer % _MAX_COLORS, steps, [value[layer] for value in by_layer], None)
        for layer in range(len(by_layer[0]))
    ]


def _comparison(inputs: ReportInputs) -> Table | None:
    """Held-out losses of the dense model, trained on, and of the mixture, at equal tokens."""
    held_out: Mapping[str, Any] = (inputs.held_out_loss or {}).get("models", {})
    if EXPERTS not in held_out or CONTROL not in held_out:
        return None
    streams = list(held_out[CONTROL]["streams"])
    columns = (
        Column("Model", numeric=False),
        Column("Parameters"),
        Column("Active"),
        Column("Further tokens"),
        *(Column(stream, unit="nats a token") for stream in streams),
    )
    rows = []
    for name in ("pretrain", CONTROL, EXPERTS):
        if name not in held_out:
            continue
        summary = _summary(inputs, name)
        further = inputs.training.get(name, ()) if name != "pretrain" else ()
        kinds = ("text", "image") if further else ()
        tokens = sum(whole_training(further, "positions", kind) for kind in kinds)
        rows.append(
            (
                name,
                compact(summary.total_parameters) if summary else "",
                compact(_active_parameters(summary)) if summary else "",
                count(tokens),
                *(_loss_cell(held_out, name, stream) for stream in streams),
            )
        )
    return Table(
        "Dense and mixture of experts at equal further tokens",
        columns,
        tuple(rows),
        emphasised=frozenset({len(rows) - 1}),
        note=f"Both were trained on from the same model with the same batches. Beneath the "
        f"mixture's losses: the difference to {CONTROL}; less is better. One seed: the interval "
        "over seeds is an experiment of its own (benchmarks/upcycling.py).",
    )


def _loss_cell(held_out: Mapping[str, Any], name: str, stream: str) -> Cell:
    loss = held_out[name]["streams"][stream]["loss"]
    difference = loss - held_out[CONTROL]["streams"][stream]["loss"]
    detail = signed(difference, _DIGITS) if name == EXPERTS else ""
    return Cell(decimal(loss, _DIGITS), detail=detail)


def _summary(inputs: ReportInputs, name: str) -> ModelSummary | None:
    # The control has the dense model's shape.
    directory = inputs.models.get("pretrain" if name == CONTROL else name)
    return summarize_model(directory) if directory else None


def _active_parameters(summary: ModelSummary) -> int:
    """Parameters that take part in computing one position."""
    decoder = summary.config["decoder"]
    moe = decoder.get("moe")
    if not moe:
        return summary.total_parameters
    layers = decoder["num_layers"] // moe["every_n_layers"]
    expert = 3 * decoder["d_model"] * (moe.get("d_ff") or decoder["d_ff"])
    return summary.total_parameters - layers * (moe["num_experts"] - moe["top_k"]) * expert


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
