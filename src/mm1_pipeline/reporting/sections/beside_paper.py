"""Tables of this run's benchmarks and of the paper's: the same columns, never the same table."""

from __future__ import annotations

from collections.abc import Sequence

from mm1_pipeline.ground.formatting import MISSING, decimal
from mm1_pipeline.reporting import paper
from mm1_pipeline.reporting.inputs import ReportInputs, is_trained
from mm1_pipeline.reporting.page import Cell, Column, Table

_PRETRAIN, _SFT = "pretrain", "sft"


def paper_tables(inputs: ReportInputs) -> list[Table]:
    """This run on the paper's benchmarks, where it ran any, then the paper's own numbers."""
    return [
        *_own_table(inputs, _PRETRAIN, "pre-training benchmarks", paper.TASKS),
        _table(paper.PRETRAINING, paper.TASKS, paper.SOURCE, "after pre-training"),
        *_own_table(inputs, _SFT, "benchmarks after SFT", paper.SFT_TASKS),
        _table(paper.SFT, paper.SFT_TASKS, paper.SFT_SOURCE, "after SFT"),
    ]


def _own_table(
    inputs: ReportInputs, table: str, title: str, columns: Sequence[tuple[str, str]]
) -> list[Table]:
    """Rows of this run under the paper's columns; nothing if it ran none of them."""
    tasks = {
        entry["paper"]["column"]: task
        for task in inputs.tasks
        if (entry := inputs.entry(task)).get("paper") and entry["paper"]["table"] == table
    }
    rows = []
    for model in filter(is_trained, inputs.scored_models):
        for shots in sorted({number for task in tasks.values() for number in inputs.shots(task)}):
            cells = [_cell(inputs, model, tasks.get(name), shots) for name, _ in columns]
            if any(cell != MISSING for cell in cells):
                rows.append((model, str(shots), *cells))
    if not rows:
        return []
    entries = {name: inputs.entry(task) for name, task in tasks.items()}
    unconfirmed = sorted(
        {part for entry in entries.values() for part in entry.get("unconfirmed", ())}
    )
    notes = [f"Not confirmed to be the paper's: {', '.join(unconfirmed)}."] if unconfirmed else []
    notes += [
        f"{name} is not comparable with published numbers: {entry['not_comparable']}."
        for name, entry in entries.items()
        if "not_comparable" in entry
    ]
    return [
        Table(
            f"This run: the paper's {title}",
            _headings(columns),
            tuple(rows),
            frozenset(range(len(rows))),
            note=" ".join(notes),
        )
    ]


def _cell(inputs: ReportInputs, model: str, task: str | None, shots: int) -> Cell | str:
    score = inputs.score(model, task, shots) if task is not None else None
    if score is None:
        return MISSING
    detail = f"± {decimal(score['stderr'])}, n {score['n']:,}"
    return Cell(decimal(score["value"]), detail, strong=True)


def _table(
    rows: Sequence[paper.PaperRow], columns: Sequence[tuple[str, str]], source: str, when: str
) -> Table:
    return Table(
        f"The paper's, {when}: other data and sizes, not comparable in value",
        _headings(columns),
        tuple(
            (row.model, str(row.shots), *(decimal(score) for score in row.scores)) for row in rows
        ),
        frozenset(index for index, row in enumerate(rows) if row.is_mm1),
        note=f"Source: {source}",
    )


def _headings(columns: Sequence[tuple[str, str]]) -> tuple[Column, ...]:
    return (
        Column("Model", numeric=False),
        Column("Shots"),
        *(Column(name, unit=metric) for name, metric in columns),
    )
