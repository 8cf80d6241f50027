"""Section: how the trainings went."""

from __future__ import annotations

import math
from collections.abc import Callable

from mm1_pipeline.ground.formatting import compact, count, decimal, duration, scientific
from mm1_pipeline.reporting.charts import THIRD, WIDE, Line, learning_rate_label, line_chart
from mm1_pipeline.reporting.inputs import ReportInputs, Rows
from mm1_pipeline.reporting.page import Block, Chart, Heading, Section, Tile, Tiles
from mm1_pipeline.reporting.series import (
    MAX_POINTS,
    final_mean,
    points,
    running_mean,
    stream_names,
    thin,
    whole_training,
)

_TEXT, _IMAGE, _NORM = 2, 4, 5
"""Series colours of throughput."""


def training_section(inputs: ReportInputs) -> Section | None:
    """Loss, learning rate, gradient norm and throughput of every stage that was trained."""
    stages = {stage: rows for stage, rows in inputs.training.items() if rows}
    if not stages:
        return None
    window = inputs.config.smoothing_steps
    blocks: list[Block] = []
    for stage, rows in stages.items():
        blocks += _stage_blocks(stage, rows, window)
    return Section(
        "training",
        "Training",
        "Loss for each stream on its own: in nats a token; of an encoder in nats a pair of image "
        "and text (CLIP), or the squared error of patches (AIM). Bold lines are running means over "
        f"{count(window)} steps; the faint ones behind them are single steps.",
        tuple(blocks),
    )


def _stage_blocks(stage: str, rows: Rows, window: int) -> list[Block]:
    blocks: list[Block] = [
        Heading(f"Stage {stage}"),
        _summary(rows, window),
        _loss_chart(stage, rows, window),
    ]
    blocks += _narrow_chart("Learning rate", stage, rows, {("lr",): 0}, number=learning_rate_label)
    blocks += _narrow_chart("Gradient norm, before clipping", stage, rows, {("grad_norm",): _NORM})
    blocks += _narrow_chart(
        "Tokens a second",
        stage,
        rows,
        {
            ("timing", "tokens_per_second", "text"): _TEXT,
            ("timing", "tokens_per_second", "image"): _IMAGE,
        },
        legend=(("text", _TEXT), ("image", _IMAGE)),
        number=compact,
    )
    return blocks


def _summary(rows: Rows, window: int) -> Tiles:
    """Numbers of a whole stage; losses are running means at its end."""
    steps, losses = points(rows, "loss")
    text = whole_training(rows, "positions", "text")
    image = whole_training(rows, "positions", "image")
    seconds = whole_training(rows, "timing", "seconds")
    _, rates = points(rows, "lr")
    return Tiles(
        (
            Tile(
                "Steps",
                count(rows[-1]["step"]),
                f"peak learning rate {scientific(max(rates, default=None))}",
            ),
            Tile(
                "Loss at the end",
                decimal(final_mean(steps, losses, window), 3),
                f"mean of the last {count(min(window, steps[-1]))} steps; "
                f"at first {decimal(losses[0], 3)}",
            ),
            Tile(
                "Tokens seen",
                compact(text + image),
                f"{compact(text)} text, {compact(image)} image",
            ),
            Tile("Time", duration(seconds), _throughput(text + image, seconds)),
        )
    )


def _throughput(tokens: float, seconds: float) -> str:
    return f"{compact(tokens / seconds)} tokens a second" if seconds > 0 else ""


def _loss_chart(stage: str, rows: Rows, window: int) -> Chart:
    streams = stream_names(rows)
    lines = [_line(rows, ("losses", name), color, window) for color, name in enumerate(streams)]
    svg = line_chart(
        [line for line in lines if line.steps],
        title=f"Training loss of {stage}, by stream",
        width=WIDE,
        height=3.0,
    )
    return Chart(
        "Training loss", svg, legend=tuple((name, color) for color, name in enumerate(streams))
    )


def _narrow_chart(
    caption: str,
    stage: str,
    rows: Rows,
    paths: dict[tuple[str, ...], int],
    *,
    legend: tuple[tuple[str, int], ...] = (),
    number: Callable[[float], str] = "{:g}".format,
) -> list[Block]:
    """A small panel; none where the rows do not have the numbers."""
    lines = [_line(rows, path, color) for path, color in paths.items()]
    if not any(line.steps for line in lines):
        return []
    svg = line_chart(
        [line for line in lines if line.steps],
        title=f"{caption} of {stage}",
        width=THIRD,
        height=1.9,
        number=number,
        from_zero=True,
    )
    return [Chart(caption, svg, legend=legend, wide=False)]


def _line(rows: Rows, path: tuple[str, ...], color: int, window: int = 1) -> Line:
    steps, values = points(rows, *path)
    finite = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    steps, values = [s for s, _ in finite], [v for _, v in finite]
    means = running_mean(steps, values, window)
    kept = thin(range(len(steps)), MAX_POINTS)
    x = [steps[i] for i in kept]
    background = (x, [values[i] for i in kept]) if window > 1 else None
    return Line(color, x, [means[i] for i in kept], background)
