"""Drawings as inline SVG that follows the page's colours, in light and in dark.

Charts are drawn by matplotlib in stand-in colours, which are then replaced by the page's CSS
variables. Nothing in the result depends on time, and ids are derived from the content, so equal
data gives equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mm1_pipeline.ground.formatting import compact, scientific, visible

P = ParamSpec("P")

INK, MUTED, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = tuple(f"#0a0c0{i}" for i in range(8))
NUM_SERIES = len(SERIES)
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    color: f"--series-{i}" for i, color in enumerate(SERIES)
}

WIDE, HALF, THIRD = 9.6, 4.7, 3.1
"""Widths in hundreds of CSS pixels: at these, letters come out equally large everywhere."""

_BAR_HEIGHT = 0.46
_ROW_HEIGHT = 0.24
_TICK_STEPS = [1, 2, 2.5, 5, 10]

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mm1-pipeline",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.6,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.6,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        color: index into the page's series colours.
        steps: rising x values.
        values: as many y values.
        background: the same curve unsmoothed, drawn faintly behind.
    """

    color: int
    steps: Sequence[float]
    values: Sequence[float]
    background: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Dot:
    """A value with its interval.

    Attributes:
        color: index into the page's series colours.
        value: where the dot is.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    color: int
    value: float
    low: float
    high: float


def styled(draw: Callable[P, Markup]) -> Callable[P, Markup]:
    """Draws in the report's style, whatever the user's matplotlib settings are."""

    @wraps(draw)
    def styled_draw(*args: P.args, **kwargs: P.kwargs) -> Markup:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return styled_draw


@styled
def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    width: float,
    height: float = 2.3,
    number: Callable[[float], str] = "{:g}".format,
    from_zero: bool = False,
) -> Markup:
    """Curves over training steps.

    Args:
        lines: the curves, in drawing order.
        title: what the drawing shows, for those who cannot see it.
        width: one of `WIDE`, `HALF`, `THIRD`.
        height: in the same unit.
        number: writes a value of the y axis.
        from_zero: starts the y axis at zero.

    Returns:
        An SVG element.
    """
    figure, axes = canvas(width, height)
    for line in lines:
        color = SERIES[line.color]
        if line.background:
            axes.plot(*line.background, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(line.steps, line.values, color=color, linewidth=1.5)
        if len(line.steps) == 1:
            axes.plot(line.steps, line.values, color=color, marker="o", markersize=4)
    axes.margins(x=0.01, y=0.08)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_xlabel("step")
    return to_svg(figure, title)


@styled
def stacked_bars(
    rows: Mapping[str, Sequence[float]],
    *,
    title: str,
    colors: Sequence[int],
    labels: Sequence[str],
) -> Markup:
    """One horizontal bar of 0 to 100 % a row, made of shares.

    Args:
        rows: shares of each part (0..1), by the row's name.
        title: what the drawing shows, for those who cannot see it.
        colors: series colour of each part.
        labels: text at the right of each row.

    Returns:
        An SVG element.
    """
    figure, axes = canvas(WIDE, 0.5 + _ROW_HEIGHT * len(rows))
    left = [0.0] * len(rows)
    for part, color in enumerate(colors):
        widths = [100 * shares[part] for shares in rows.values()]
        axes.barh(range(len(rows)), widths, left=left, height=_BAR_HEIGHT, color=SERIES[color])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    _name_rows(axes, list(rows))
    _label_rows(axes, labels, right_edge=100)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    return to_svg(figure, title)


@styled
def target_bars(
    rows: Mapping[str, tuple[float, float | None]], *, title: str, labels: Sequence[str]
) -> Markup:
    """Measured shares as bars, with a mark where each was planned to end.

    Args:
        rows: measured and planned share (0..1), by the row's name.
        title: what the drawing shows, for those who cannot see it.
        labels: text at the right of each row.

    Returns:
        An SVG element.
    """
    figure, axes = canvas(WIDE, 0.5 + _ROW_HEIGHT * len(rows))
    for place, (measured, planned) in enumerate(rows.values()):
        axes.barh(place, 100 * measured, height=_BAR_HEIGHT, color=SERIES[place % len(SERIES)])
        if planned is not None:
            axes.plot([100 * planned] * 2, [place - 0.36, place + 0.36], color=INK, linewidth=1.6)
    _name_rows(axes, list(rows))
    longest = max((max(measured, planned or 0) for measured, planned in rows.values()), default=1)
    _label_rows(axes, labels, right_edge=105 * longest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    return to_svg(figure, title)


@styled
def dot_chart(
    groups: Mapping[str, Sequence[Dot]],
    *,
    title: str,
    label: str,
    width: float = HALF,
    from_zero: bool = False,
) -> Markup:
    """Values with 95 % intervals, one row a value, rows gathered in named groups.

    Args:
        groups: the dots of each group, in order from the top.
        title: what the drawing shows, for those who cannot see it.
        label: name of the x axis.
        width: one of `WIDE`, `HALF`, `THIRD`.
        from_zero: shows zero with a line, where zero means something.

    Returns:
        An SVG element.
    """
    num_rows = sum(len(dots) for dots in groups.values()) + len(groups) - 1
    figure, axes = canvas(width, 0.7 + 0.17 * num_rows)
    centres, row = [], 0
    for dots in groups.values():
        centres.append(row + (len(dots) - 1) / 2)
        for dot in dots:
            color = SERIES[dot.color]
            axes.plot([dot.low, dot.high], [row, row], color=color, linewidth=1.8, alpha=0.55)
            axes.plot([dot.value], [row], color=color, marker="o", markersize=5)
            row += 1
        row += 1
    _name_rows(axes, list(groups), places=centres)
    axes.set_ylim(num_rows - 0.2, -0.8)
    if from_zero:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.axvline(0.0, color=MUTED, linewidth=0.9, zorder=0.9)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
    axes.set_xlabel(visible(label))
    return to_svg(figure, title)


def learning_rate_label(value: float) -> str:
    """A tick of a learning-rate axis."""
    return "0" if value == 0 else scientific(value)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing of a size in hundreds of CSS pixels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    """Writes the rows' names at the left, the first row on top."""
    axes.set_yticks(range(len(names)) if places is None else places)
    axes.set_yticklabels([visible(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _label_rows(axes: Axes, labels: Sequence[str], right_edge: float) -> None:
    """Writes a text at the right of each row."""
    axes.set_xlim(0, right_edge)
    for place, label in enumerate(labels):
        axes.text(1.01 * right_edge, place, visible(label), va="center", color=MUTED)


def to_svg(figure: Figure, title: str) -> Markup:
    """A finished drawing as an SVG element in the page's colours.

    Args:
        figure: from `canvas`.
        title: what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    content = buffer.getvalue()
    root = ET.fromstring(content)  # noqa: S314 - our own drawing
    _remove_foreign_parts(root)
    # Two drawings on a page may share an id, so each gets a prefix of its own.
    identity = f"{visible(title)}\n{content}".encode()
    prefix = f"c{hashlib.sha256(identity).hexdigest()[:10]}-"
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', content))
    for element in root.iter():
        _adopt(element, prefix, referenced)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", visible(title))
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - text was escaped by ET


def _remove_foreign_parts(root: ET.Element) -> None:
    """Drops metadata, and the style element whose rules would apply to the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _adopt(element: ET.Element, prefix: str, referenced: set[str]) -> None:
    """Makes an element fit to stand inside an HTML page beside other drawings."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    element.attrib.clear()
    for name, value in attributes.items():
        if name == "id":
            if value in referenced:
                element.set(name, prefix + value)
        elif name == "href":
            element.set(name, f"#{prefix}{value.removeprefix('#')}")
        else:
            element.set(name, _adopt_value(value, prefix))


def _adopt_value(value: str, prefix: str) -> str:
    value = value.replace("url(#", f"url(#{prefix}")
    value = re.sub(r"#0a0[bc]0\d", lambda found: f"var({_VARIABLES[found.group()]})", value)
    value = re.sub(r"font-family: [^;]*; ?", "", value)
    # A hundredth of a point is finer than any screen.
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}", value)
