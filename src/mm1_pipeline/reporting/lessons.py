"""The lab's pages: what the ablation says of the paper's lessons, and the learning-rate law."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from mm1_pipeline.ground.formatting import MISSING, compact, decimal, duration, signed
from mm1_pipeline.reporting.charts import NUM_SERIES, WIDE, Dot, dot_chart
from mm1_pipeline.reporting.html import render_page
from mm1_pipeline.reporting.law_chart import law_chart, rate_chart
from mm1_pipeline.reporting.page import (
    Block,
    Cell,
    Chart,
    Column,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    Tone,
)

_COLOURS: dict[str, Tone] = {"shown": "good", "contradicted": "bad", "not shown": "neutral"}
_SERIES = {"shown": 2, "contradicted": 5, "not shown": 0}
_EXPECTED = {"higher": "first arm higher", "lower": "first arm lower", "equal": "no difference"}

Content = Mapping[str, Any]


def render_lessons(lessons: Content, costs: Content) -> str:
    """Shows every lesson on one page: an index, then a section for each.

    Args:
        lessons: content of lessons.json.
        costs: content of arms_cost.json.

    Returns:
        The page; equal inputs give equal bytes.
    """
    lessons = {**lessons, "lessons": _by_number(lessons["lessons"])}
    sections = [_index(lessons, costs)]
    sections += [_lesson(name, lessons, costs) for name in lessons["lessons"]]
    sections.append(_arms(lessons, costs))
    return render_page("The lab: MM1's lessons", sections)


def verdict_lines(lessons: Content) -> list[str]:
    """Says every verdict in a line, e.g. for a terminal.

    Args:
        lessons: content of lessons.json.
    """
    return [
        f"{name}: {lesson['verdict']}, {_points(lesson['delta'], lesson)} "
        f"{_interval(lesson)} {_unit(lesson)} (seeds: {lesson['seeds']})"
        for name, lesson in _by_number(lessons["lessons"]).items()
    ]


def render_law(law: Content) -> str:
    """Shows the learning-rate law beside the paper's.

    Args:
        law: content of lr_law.json.

    Returns:
        The page; equal inputs give equal bytes.
    """
    return render_page("The lab: learning-rate law", [_law(law)])


def _by_number(lessons: Content) -> Content:
    """L1, L1_x, L2 ..., whichever parameter file declares them; others follow as they are."""

    def number(name: str) -> float:
        found = re.match(r"L(\d+)(_|$)", name)
        return int(found[1]) if found else math.inf

    return {name: lessons[name] for name in sorted(lessons, key=number)}


def _index(lessons: Content, costs: Content) -> Section:
    found = lessons["lessons"]
    counts = {name: sum(x["verdict"] == name for x in found.values()) for name in _COLOURS}
    runs = [run for arm in costs["arms"].values() for run in arm.values()]
    seconds = sum(run["seconds"] for run in runs)
    tiles = [Tile(name, str(counts[name])) for name in _COLOURS]
    tiles.append(Tile("runs", str(len(runs)), f"{duration(seconds)} in all"))
    rows = tuple(
        (
            Cell(lesson["title"], detail=name),
            _verdict(lesson),
            Cell(_points(lesson["delta"], lesson), detail=_interval(lesson)),
            lesson["paper"] or MISSING,
            str(lesson["seeds"]),
        )
        for name, lesson in found.items()
    )
    columns = (
        Column("lesson", numeric=False),
        Column("verdict", numeric=False),
        Column("ours", unit="points, 95 %"),
        Column("the paper's", numeric=False, unit="its own scale and tasks"),
        Column("seeds"),
    )
    table = Table(
        "Every lesson",
        columns,
        rows,
        note="Ours is the first arm less the second, on a small synthetic world: its size says "
        "nothing of the paper's, its sign may. All lessons are tested together (Holm).",
    )
    return Section(
        "lessons",
        "Lessons",
        "A lesson is shown where chance alone would show any of these at most one time in "
        "twenty, contradicted where the same holds for its opposite, and not shown otherwise.",
        (Tiles(tuple(tiles)), table, *_overview(found)),
    )


def _overview(found: Content) -> list[Block]:
    """All differences, drawn by scale: CIDEr's may be far larger than those of accuracies.

    Held-out losses have a scale of their own and are left to their sections.
    """
    scored = {name: x for name, x in found.items() if not _is_loss(x)}
    large = {name: x for name, x in scored.items() if abs(x["delta"]) > 100}
    usual = {name: x for name, x in scored.items() if name not in large}
    legend = tuple((name, series) for name, series in _SERIES.items())
    drawings = {
        "Differences with their 95 % intervals": usual,
        "Differences beyond 100 points, with their 95 % intervals": large,
    }
    return [Chart(title, _dots(title, part), legend) for title, part in drawings.items() if part]


def _dots(title: str, lessons: Content) -> Markup:
    return dot_chart(
        {name: [_dot(lesson)] for name, lesson in lessons.items()},
        title=title,
        label="first arm less second, points",
        width=WIDE,
        from_zero=True,
    )


def _lesson(name: str, lessons: Content, costs: Content) -> Section:
    lesson = lessons["lessons"][name]
    first, second = lesson["first"], lesson["second"]
    groups = {
        f"seed {seed}": [Dot(_SERIES[lesson["verdict"]], value, value, value)]
        for seed, value in lesson.get("per_seed", {}).items()
    }
    svg = dot_chart(
        {**groups, "mean": [_dot(lesson)]},
        title=f"{name}: difference by seed, and the mean with its 95 % interval",
        label=f"{first} less {second}, {_unit(lesson)}",
        width=WIDE,
        from_zero=True,
    )
    facts = (
        Column("", numeric=False),
        Column("ours", numeric=False),
        Column("the paper's", numeric=False),
    )
    rows = (
        ("arms", f"{first} less {second}", ""),
        ("measured", f"{lesson['measure']} ({lesson.get('model', 'pretrain')})", ""),
        ("expected", _expected(lesson), ""),
        ("difference", f"{_points(lesson['delta'], lesson)} {_interval(lesson)}", lesson["paper"]),
        ("chance shows it so clearly", f"p = {lesson['p_shown']:.3g} (adjusted)", ""),
        ("seeds and items", f"{lesson['seeds']} and {lesson['items']:,}", ""),
    )
    reason = f": {lesson['reason']}." if lesson["reason"] else "."
    return Section(
        name.replace("_", "-").lower(),
        f"{name.partition('_')[0]}: {lesson['title']}",
        f"{lesson['verdict'].capitalize()}{reason}",
        (
            Chart("Difference by seed, and the mean with its 95 % interval", svg),
            Table("This lab beside the paper", facts, rows),
            _arm_table("What the two arms change, and what they cost", {first, second}, lessons,
                       costs),
        ),
    )  # fmt: skip


def _arms(lessons: Content, costs: Content) -> Section:
    table = _arm_table("All arms", set(lessons["arms"]), lessons, costs)
    lead = "Each arm is an ordinary run with these parameters in place of the environment's."
    return Section("arms", "Arms", lead, (table,))


def _arm_table(caption: str, names: Iterable[str], lessons: Content, costs: Content) -> Table:
    columns = (
        Column("arm", numeric=False),
        Column("changes", numeric=False),
        Column("positions", unit="a run, trained"),
        Column("time", unit="a run, mean"),
    )
    wanted = set(names)
    rows = []
    for name, arm in lessons["arms"].items():
        if name not in wanted:
            continue
        runs = list(costs["arms"].get(name, {}).values())
        seconds = sum(run["seconds"] for run in runs) / len(runs) if runs else None
        changes = "; ".join(f"{path}: {_value(value)}" for path, value in arm["overrides"].items())
        cells = (changes or "nothing", compact(arm.get("positions")), duration(seconds))
        rows.append((name, *cells))
    note = "Time as it was measured where the run was made; parts that were there cost nothing."
    return Table(caption, columns, tuple(rows), note=note)


def _law(law: Content) -> Section:
    points, paper = law["points"], law["paper"]
    slope, intercept = law["slope"], law["intercept"]
    rows = tuple(
        (
            compact(point["non_embedding_parameters"]),
            Cell(f"{point['best_learning_rate']:.2e}", detail=_span(point["interval"])),
            "yes" if point["is_inside"] else Cell("no", verdict="bad"),
            f"{_rate(paper, point['non_embedding_parameters']):.2e}",
        )
        for point in points
    )
    sizes = Table(
        "Best rate of each size",
        (
            Column("size", unit="non-embedding parameters"),
            Column("ours", unit="95 %"),
            Column("between tried rates", numeric=False),
            Column("the paper's law"),
        ),
        rows,
        note="A best that is not between tried rates is a bound only: widen the grid.",
    )
    fit = Table(
        "Coefficients of ln(rate) over ln(size)",
        (Column("", numeric=False), Column("ours"), Column("the paper's")),
        (
            ("slope", Cell(f"{slope:.3f}", detail=_span(law["slope_interval"], "{:.3f}")),
             f"{paper['slope']:.4f}"),
            ("intercept",
             Cell(f"{intercept:.3f}", detail=_span(law["intercept_interval"], "{:.3f}")),
             f"{paper['intercept']:.4f}"),
            ("variance explained", decimal(law["r_squared"], 3), MISSING),
        ),
    )  # fmt: skip
    svg = law_chart(points, law, paper, title="Best learning rate over size, beside the paper's")
    predictions = Table(
        "Predicted rates",
        (Column("size"), Column("ours", unit="95 %"), Column("the paper's law")),
        tuple(
            (
                compact(target["non_embedding_parameters"]),
                Cell(f"{target['learning_rate']:.1e}", detail=_span(target["interval"], "{:.1e}")),
                f"{target['paper']:.1e}",
            )
            for target in law["predictions"]
        ),
        note="Far beyond the sizes that were run: an extrapolation.",
    )
    judged = "score" if law["higher_is_better"] else "held-out loss"
    names = tuple(
        (compact(point["non_embedding_parameters"]), number % NUM_SERIES)
        for number, point in enumerate(points)
    )
    runs = rate_chart(points, title=f"Mean {judged} over rate, by size", label=f"mean {judged}")
    return Section(
        "law",
        "Learning-rate law",
        f"Each size was trained at every rate and judged by its {judged}; a parabola gives its "
        "best rate, a line through the best ones the law. Source: MM1, Pre-training.",
        (
            Chart("Best rate over size", svg, (("this lab", 0), ("the paper's law", 1))),
            fit,
            Chart(f"Mean {judged} of every run, and the parabola of each size", runs, names),
            sizes,
            predictions,
            Note("A small world, model and batch have a law of their own; what carries over is "
                 "the method, and that the rate falls with size."),
        ),
    )  # fmt: skip


def _rate(law: Content, size: float) -> float:
    return math.exp(law["slope"] * math.log(size) + law["intercept"])


def _verdict(lesson: Content) -> Cell:
    return Cell(lesson["verdict"], verdict=_COLOURS[lesson["verdict"]])


def _dot(lesson: Content) -> Dot:
    low, high = lesson["interval"]
    return Dot(_SERIES[lesson["verdict"]], lesson["delta"], low, high)


def _expected(lesson: Content) -> str:
    margin = f", within {decimal(lesson['margin'])} points" if lesson["margin"] else ""
    return _EXPECTED[lesson["expected"]] + margin


def _is_loss(lesson: Content) -> bool:
    return lesson["measure"].startswith("held-out loss")


def _unit(lesson: Content) -> str:
    return "nats a token" if _is_loss(lesson) else "points"


def _points(value: float, lesson: Content) -> str:
    return signed(value, 3 if _is_loss(lesson) else 1)


def _interval(lesson: Content) -> str:
    low, high = lesson["interval"]
    return f"[{_points(low, lesson)}, {_points(high, lesson)}]"


def _span(found: Iterable[float], form: str = "{:.2e}") -> str:
    low, high = found
    return f"[{form.format(low)}, {form.format(high)}]"


def _value(value: Any) -> str:
    return "left out" if value is None else str(value)
