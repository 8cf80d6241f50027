"""Past runs for a terminal: as many scores side by side as there is room for, details below."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kedro_rerun.history import NodeOutcome, Outcome, PastRun
from kedro_rerun.looking_back import Listed, RunDifference
from kedro_rerun.parameters import Change

_GAP = "  "
_MAX_CHANGES = 5
_MAX_NODES = 3
_ABSENT = "-"
_BAD = {Outcome.FAILED: "red", Outcome.KILLED: "red", Outcome.STOPPED: "yellow"}


@dataclass(frozen=True)
class Column:
    """A column of a `RunTable`."""

    title: str
    """Its words stand below each other."""
    cells: tuple[str, ...]
    is_number: bool = False


@dataclass(frozen=True)
class Items:
    """What stands behind each other, none of it in two lines if there is room."""

    items: Sequence[str]
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fills one line after the other."""
        lines = [""]
        for item in self.items:
            longer = f"{lines[-1]}, {item}" if lines[-1] else item
            if lines[-1] and len(longer) >= options.max_width:
                lines[-1] += ","
                lines.append(item)
            else:
                lines[-1] = longer
        yield Text("\n".join(lines), style=self.style)


@dataclass(frozen=True)
class RunTable:
    """Rows with details below each; columns that may go are left out from the right.

    Args:
        columns: that stay.
        optional: that are shown as far as they fit.
        details: below each row.
        left_out: what is said of columns that do not fit.
    """

    columns: Sequence[Column]
    optional: Sequence[Column]
    details: Sequence[Sequence[RenderableType]]
    left_out: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lays it out in the width that there is."""
        shown, left = list(self.columns), options.max_width
        left -= sum(_width(column) + len(_GAP) for column in shown)
        for column in self.optional:
            left -= _width(column) + len(_GAP)
            if left < -len(_GAP):
                break
            shown.append(column)
        titles = [column.title.split() for column in shown]
        for line in range(-max(map(len, titles)), 0):
            words = [title[line] if len(title) >= -line else "" for title in titles]
            yield Text(_line(words, shown), style="bold", no_wrap=True)
        for place, details in enumerate(self.details):
            cells = [column.cells[place] for column in shown]
            yield Text(_line(cells, shown), no_wrap=True, overflow="ellipsis")
            for detail in details:
                yield Padding(detail, (0, 0, 0, _width(shown[0]) + len(_GAP)))
        if missing := len(self.columns) + len(self.optional) - len(shown):
            yield Text(f"{missing} more scores: {self.left_out}.", style="dim")


def render_runs(listed: Sequence[Listed], hidden: int, damaged: Collection[Path]) -> RenderableType:
    """What was run, newest first.

    Args:
        listed: the runs to show.
        hidden: how many more there are.
        damaged: records that nobody can read.
    """
    parts: list[RenderableType] = []
    runs = [item.run for item in listed]
    if not runs:
        parts.append(Text("No run is recorded yet: `kedro run` writes the first record."))
    else:
        environments = {str(run.provenance.get("environment") or "") for run in runs} - {""}
        if len(environments) == 1:
            parts.append(Text(f"Environment {environments.pop()}"))
        columns = [
            Column("run", tuple(str(run.number) for run in runs), is_number=True),
            Column("started", tuple(moment(run.started_at) for run in runs)),
            Column("commit", tuple(_commit(run) for run in runs)),
            Column("took", tuple(duration(run.seconds) for run in runs), is_number=True),
            Column("ran", tuple(f"{len(run.ran)}/{len(run.nodes)}" for run in runs), True),
        ]
        details = [list(_details(item, len(environments) > 1)) for item in listed]
        parts.append(RunTable(columns, score_columns(runs), details, "--json tells them"))
    if hidden:
        parts.append(Text(f"{hidden} older runs: --all shows them.", style="dim"))
    parts += [Text(f"{path}: a damaged record, left out.", style="red") for path in damaged]
    return Group(*parts)


def runs_as_json(listed: Sequence[Listed], damaged: Collection[Path]) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "runs": [
            {
                **summary(item.run),
                "changed": _by_name(item.changes),
                "changed_code": list(item.code),
                "first": item.is_first,
                "nodes": {name: vars(node) for name, node in item.run.nodes.items()},
                "versions": dict(item.run.versions),
                "command": item.run.command,
            }
            for item in listed
        ],
        "damaged": [str(path) for path in damaged],
    }


def render_difference(found: RunDifference) -> RenderableType:
    """Two runs side by side, only what differs."""
    a, b = found.first, found.second
    table = Table("", f"run {a.number}", f"run {b.number}", "", box=None, pad_edge=False)
    for column, ratio in zip(table.columns, (3, 2, 2, 0), strict=True):
        column.overflow, column.header_style = "fold", "bold"
        column.ratio = ratio or None
    table.add_row("started", moment(a.started_at), moment(b.started_at))
    table.add_row("took", duration(a.seconds), duration(b.seconds))
    for title, sides in (("commit", map(_commit, (a, b))), ("ended", (a.outcome, b.outcome))):
        first, second = sides
        if first != second:
            table.add_row(title, first, second)
    if found.parameters:
        table.add_row(Text("parameters", style="bold"))
    for change in found.parameters:
        table.add_row(change.path, change.before or _ABSENT, change.after or _ABSENT)
    both = {
        name: (first, second)
        for name, (first, second) in found.scores.items()
        if first is not None and second is not None
    }
    if both:
        table.add_row(Text("scores", style="bold"))
    for name, (first, second) in both.items():
        table.add_row(name, score(first), score(second), f"{second - first:+.4g}")
    parts: list[RenderableType] = [table]
    for title, items in _lines(found):
        parts.append(_one_line(f"{title}: ", items))
    if not (found.parameters or found.scores or [*_lines(found)]):
        parts.append(Text("Nothing else differs: no parameter, score, code, library or input."))
    return Group(*parts)


def difference_as_json(found: RunDifference) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "first": summary(found.first),
        "second": summary(found.second),
        "parameters": _by_name(found.parameters),
        "scores": {name: list(sides) for name, sides in found.scores.items()},
        "code": {node: list(parts) for node, parts in found.code.items()},
        "libraries": _by_name(found.libraries),
        "inputs": list(found.inputs),
        "only_first": list(found.only[0]),
        "only_second": list(found.only[1]),
    }


def summary(run: PastRun) -> dict[str, Any]:
    """What every JSON output tells of a run."""
    return {
        "run": run.number,
        "started_at": run.started_at,
        "outcome": str(run.outcome),
        "error": run.error,
        "environment": run.provenance.get("environment"),
        "commit": run.provenance.get("commit_sha"),
        "uncommitted": run.provenance.get("dirty"),
        "seconds": run.seconds,
        "node_seconds": round(run.cost, 3),
        "ran": {name: node.seconds for name, node in run.ran.items()},
        "scores": dict(run.scores),
    }


def score_columns(runs: Sequence[PastRun | None]) -> list[Column]:
    """A column a score, in the order in which the runs tell them."""
    names = dict.fromkeys(name for run in runs if run for name in run.scores)
    return [
        Column(name, tuple(score(run.scores.get(name)) if run else "" for run in runs), True)
        for name in names
    ]


def score(value: float | None) -> str:
    """A score with four digits."""
    return _ABSENT if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds for a person."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: str) -> str:
    """A time in the reader's time zone."""
    return datetime.datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")


def _details(item: Listed, tells_environment: bool) -> Iterator[RenderableType]:
    run = item.run
    if tells_environment:
        yield Text(f"environment {run.provenance.get('environment') or 'unknown'}")
    if run.outcome != Outcome.DONE:
        ends = (NodeOutcome.FAILED, NodeOutcome.RUNNING)
        where = [f" in {name}" for name, node in run.nodes.items() if node.outcome in ends]
        told = f"{run.outcome}{''.join(where)}"
        told += f": {run.error}" if run.error else ""
        yield Text(told, style=_BAD.get(Outcome(run.outcome), ""))
    for change in item.changes[:_MAX_CHANGES]:
        yield Text(str(change), style="cyan")
    if (more := len(item.changes) - _MAX_CHANGES) > 0:
        yield Text(f"and {more} more parameters", style="cyan")
    if item.code:
        yield _one_line("code of ", ", ".join(item.code), style="cyan")
    ran = sorted(run.ran.items(), key=lambda pair: -(pair[1].seconds or 0))
    if ran:
        shown = [f"{name} {duration(node.seconds)}" for name, node in ran[:_MAX_NODES]]
        if rest := ran[_MAX_NODES:]:
            spent = sum(node.seconds or 0 for _, node in rest)
            shown.append(f"{len(rest)} more {duration(spent)}")
        yield Items(shown, style="dim")


def _lines(found: RunDifference) -> Iterator[tuple[str, str]]:
    if found.code:
        told = [f"{node} ({', '.join(at)})" if at else node for node, at in found.code.items()]
        yield f"code of {len(told)} nodes" if len(told) > 1 else "code", ", ".join(told)
    if found.libraries:
        yield "libraries", ", ".join(map(str, found.libraries))
    if found.inputs:
        yield "inputs", ", ".join(found.inputs)
    for place, run in enumerate((found.first, found.second)):
        if nodes := found.only[place]:
            yield f"nodes only in run {run.number}", ", ".join(nodes)
        scores = [name for name, sides in found.scores.items() if sides[1 - place] is None]
        if scores:
            yield f"scores only in run {run.number}", ", ".join(scores)


def _one_line(title: str, text: str, style: str = "") -> Text:
    return Text(title + text, style=style, no_wrap=True, overflow="ellipsis")


def _by_name(changes: Collection[Change]) -> dict[str, list[str | None]]:
    return {change.path: [change.before, change.after] for change in changes}


def _commit(run: PastRun) -> str:
    told: Mapping[str, Any] = run.provenance
    return f"{str(told.get('commit_sha') or _ABSENT)[:8]}{'*' if told.get('dirty') else ''}"


def _width(column: Column) -> int:
    return max(map(len, (*column.title.split(), *column.cells)))


def _line(cells: Sequence[str], columns: Sequence[Column]) -> str:
    return _GAP.join(
        cell.rjust(_width(column)) if column.is_number else cell.ljust(_width(column))
        for cell, column in zip(cells, columns, strict=True)
    ).rstrip()
