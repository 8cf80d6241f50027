"""A page, and a table in a terminal, of what differs between two runs item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from mm1_pipeline.evaluation.comparison import Flip, TaskComparison
from mm1_pipeline.ground.formatting import count, decimal, interval, shorten, signed, visible
from mm1_pipeline.reporting.differences import Difference
from mm1_pipeline.reporting.html import render_page
from mm1_pipeline.reporting.page import (
    Block,
    Cell,
    Column,
    Example,
    Examples,
    ModelAnswer,
    Note,
    Section,
    Table,
)
from mm1_pipeline.reporting.predictions import find_records
from mm1_pipeline.reporting.sections.examples import example_image, example_question

MAX_SHOWN = 24
"""Flips of a task that are shown with their image, half of them losses where there are enough."""
_SHOWN_CHARACTERS = 140
_NOTE = (
    "Means are over the items that both runs have; the interval is of a paired bootstrap over "
    "images. An item flips when one run has a score of 50 or more and the other has not. p is "
    "McNemar's exact test of gained against lost: how likely so uneven a split would be by chance."
)


def render_comparison(
    comparisons: Sequence[TaskComparison],
    names: tuple[str, str],
    predictions_dirs: Sequence[Path] = (),
    records_dir: Path | None = None,
) -> str:
    """Shows two runs side by side on one self-contained page.

    Args:
        comparisons: a task and number of shots each.
        names: of the first and the second run.
        predictions_dirs: artifacts of predictions, for small copies of images.
        records_dir: the artifact that holds `records/`, for the images of ingested sources.
    """
    sections = [Section("summary", "Summary", _NOTE, (_summary_table(comparisons, names),))]
    for place, comparison in enumerate(comparisons):
        title = f"{comparison.task}, {comparison.shots} shots"
        lead = (
            f"{count(comparison.num_gained)} gained and {count(comparison.num_lost)} lost of "
            f"{count(comparison.count)} items."
        )
        blocks = _flips(comparison, names, predictions_dirs, records_dir)
        if blocks:
            sections.append(Section(f"task-{place}", title, lead, tuple(blocks)))
    return render_page(f"{names[0]} against {names[1]}", sections)


def comparison_table(
    comparisons: Sequence[TaskComparison], names: tuple[str, str]
) -> RenderableType:
    """The summary as a terminal shows it."""
    table = RichTable(box=None, pad_edge=False, header_style="bold")
    table.add_column("Task", overflow="fold")
    for title in ("Shots", "n", "A", "B", "B − A", "95 % interval", "Flips", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    before = None
    for task, shots, size, first, second, change, ends, gained, lost, p_value, _ in _table_rows(
        comparisons
    ):
        title = "" if task == before else task  # Numbers of shots stand below each other.
        before = task
        cells = (title, shots, size, first, second, change, ends, f"+{gained} −{lost}", p_value)
        table.add_row(*(Text(visible(cell)) for cell in map(str, cells)))
    legend = Text(visible(f"A: {names[0]}. B: {names[1]}. Flips: gained and lost by B."))
    return Group(table, legend, Text(_warnings(comparisons)))


def as_data(comparisons: Sequence[TaskComparison]) -> list[dict[str, Any]]:
    """The comparison as JSON values, every flip with both answers."""
    return [
        {
            "task": each.task,
            "shots": each.shots,
            "n": each.count,
            "only_first": each.only_first,
            "only_second": each.only_second,
            "same_prompts": each.same_prompts,
            "first": each.first,
            "second": each.second,
            "difference": each.difference._asdict(),
            "gained": each.num_gained,
            "lost": each.num_lost,
            "p_value": each.p_value,
            "flips": [
                {
                    "key": flip.key,
                    "gain": flip.is_gain,
                    "first": flip.first.get("processed_output", ""),
                    "second": flip.second.get("processed_output", ""),
                    "references": flip.first.get("references", []),
                }
                for flip in each.flips
            ],
        }
        for each in comparisons
    ]


def _summary_table(comparisons: Sequence[TaskComparison], names: tuple[str, str]) -> Table:
    return Table(
        "Second run less first, on the items of both",
        _columns(names),
        tuple(_table_rows(comparisons)),
        note=_warnings(comparisons),
    )


def _columns(names: tuple[str, str]) -> tuple[Column, ...]:
    return (
        Column("Task", numeric=False),
        Column("Shots"),
        Column("n"),
        Column(names[0]),
        Column(names[1]),
        Column("Difference"),
        Column("95 % interval"),
        Column("Gained"),
        Column("Lost"),
        Column("p"),
        Column("Better?", numeric=False),
    )


def _table_rows(comparisons: Sequence[TaskComparison]) -> list[tuple[Cell | str, ...]]:
    rows = []
    for each in comparisons:
        difference = Difference(*each.difference)
        rows.append(
            (
                each.task,
                str(each.shots),
                count(each.count),
                decimal(each.first),
                decimal(each.second),
                signed(difference.mean),
                interval(difference.low, difference.high),
                count(each.num_gained),
                count(each.num_lost),
                "< 0.001" if each.p_value < 0.001 else decimal(each.p_value, 3),
                Cell(difference.answer, verdict=difference.verdict),
            )
        )
    return rows


def _warnings(comparisons: Sequence[TaskComparison]) -> str:
    """What makes the two runs hard to compare."""
    parts = []
    for each in comparisons:
        title = f"{each.task}, {each.shots} shots"
        if each.only_first or each.only_second:
            parts.append(
                f"{title}: {count(each.only_first)} items are in the first run alone and "
                f"{count(each.only_second)} in the second."
            )
        if each.same_prompts < each.count:
            parts.append(
                f"{title}: {count(each.count - each.same_prompts)} items were asked in other words "
                "or with other shots."
            )
    return " ".join(parts)


def _flips(
    comparison: TaskComparison,
    names: tuple[str, str],
    predictions_dirs: Sequence[Path],
    records_dir: Path | None,
) -> list[Block]:
    shown = _chosen(comparison.flips)
    if not shown:
        return []
    rows = [flip.first for flip in shown if flip.first.get("source")]
    records = find_records(records_dir, rows) if records_dir and rows else {}
    examples = tuple(
        Example(
            image=example_image(flip.first, records.get(flip.key), predictions_dirs),
            question=example_question(flip.first, records.get(flip.key)),
            references=tuple(
                shorten(str(text), _SHOWN_CHARACTERS)
                for text in dict.fromkeys(flip.first.get("references", [])[:10])
            )[:3],
            answers=(
                _to_answer(names[0], flip.first, flip.is_gain),
                _to_answer(names[1], flip.second, not flip.is_gain),
            ),
        )
        for flip in shown
    )
    note = f"{len(shown)} of {count(len(comparison.flips))} flips; losses first."
    return [Note(note), Examples("What flipped", examples)]


def _chosen(flips: Sequence[Flip]) -> list[Flip]:
    """Losses and gains, half each as far as there are enough."""
    lost = [flip for flip in flips if not flip.is_gain]
    gained = [flip for flip in flips if flip.is_gain]
    num_lost = min(len(lost), max(MAX_SHOWN // 2, MAX_SHOWN - len(gained)))
    return [*lost[:num_lost], *gained[: MAX_SHOWN - num_lost]]


def _to_answer(name: str, row: Mapping[str, Any], is_wrong: bool) -> ModelAnswer:
    text = str(row.get("processed_output", ""))
    failure = f"not asked: {row['failure']}" if row.get("failure") else ""
    return ModelAnswer(
        model=name,
        text=shorten(text, _SHOWN_CHARACTERS) if text else "(nothing)",
        score=failure or f"score {decimal(row['score'])}",
        verdict="bad" if is_wrong else "good",
    )
