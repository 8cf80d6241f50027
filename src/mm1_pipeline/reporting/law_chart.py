"""The drawings of the learning-rate law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mm1_pipeline.ground.formatting import compact, scientific
from mm1_pipeline.reporting.charts import MUTED, SERIES, WIDE, canvas, styled, to_svg

_OURS, _PAPER = SERIES[0], SERIES[1]
_BEYOND = 1.6
"""How far lines reach beyond the sizes, as a factor."""
_CURVE_STEPS = 40


@styled
def law_chart(
    points: Sequence[Mapping[str, Any]],
    law: Mapping[str, Any],
    paper: Mapping[str, float],
    *,
    title: str,
) -> Markup:
    """Best rates of some sizes with intervals, the line through them, and the paper's line.

    Args:
        points: of lr_law.json; one that is not between tried rates is drawn hollow.
        law: slope and intercept of the line.
        paper: slope and intercept of the paper's.
        title: what the drawing shows, for those who cannot see it.

    Returns:
        An SVG element.
    """
    figure, axes = canvas(WIDE, 3.4)
    sizes = [point["non_embedding_parameters"] for point in points]
    ends = (min(sizes) / _BEYOND, max(sizes) * _BEYOND)
    for coefficients, color in ((paper, _PAPER), (law, _OURS)):
        rates = [
            math.exp(coefficients["slope"] * math.log(size) + coefficients["intercept"])
            for size in ends
        ]
        axes.plot(ends, rates, color=color, linewidth=1.5)
    for point, size in zip(points, sizes, strict=True):
        low, high = point["interval"]
        axes.plot([size, size], [low, high], color=_OURS, linewidth=1.8, alpha=0.55)
        fill = _OURS if point["is_inside"] else "none"
        axes.plot([size], [point["best_learning_rate"]], color=_OURS, marker="o", markersize=6,
                  markerfacecolor=fill)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    axes.set_xlabel("non-embedding parameters of the decoder")
    axes.set_ylabel("best learning rate", color=MUTED)
    return to_svg(figure, title)


@styled
def rate_chart(points: Sequence[Mapping[str, Any]], *, title: str, label: str) -> Markup:
    """What every run of every size came to, with each size's parabola over the rates it fits.

    Args:
        points: of lr_law.json, one a size.
        title: what the drawing shows, for those who cannot see it.
        label: name of the y axis.

    Returns:
        An SVG element.
    """
    figure, axes = canvas(WIDE, 3.0)
    for number, point in enumerate(points):
        color = SERIES[number % len(SERIES)]
        runs = [run for run in point["runs"] if run["value"] is not None]
        rates = [run["learning_rate"] for run in runs]
        axes.plot(
            rates,
            [run["value"] for run in runs],
            color=color,
            marker="o",
            markersize=4.5,
            linestyle="none",
        )
        a, b, c = point["parabola"]
        best = point["best_learning_rate"]
        near = sorted(rates, key=lambda rate: abs(math.log(rate / best)))[: point["num_fitted"]]
        low, high = math.log(min(near)), math.log(max(near))
        places = [low + (high - low) * step / _CURVE_STEPS for step in range(_CURVE_STEPS + 1)]
        values = [a * place**2 + b * place + c for place in places]
        axes.plot([math.exp(place) for place in places], values, color=color, linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    axes.set_xlabel("learning rate")
    axes.set_ylabel(label, color=MUTED)
    return to_svg(figure, title)
