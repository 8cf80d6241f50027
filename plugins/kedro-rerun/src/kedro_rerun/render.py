"""Results of `maintenance` for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kedro_rerun.artifacts import FINGERPRINT_LENGTH, Removed
from kedro_rerun.fingerprint import Cause
from kedro_rerun.maintenance import Explanation, Problem, StatusRow
from kedro_rerun.verdict import State

_STYLES = {State.FRESH: "green", State.STALE: "yellow", State.MISSING: "red"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHOWN = 40


def render_status(rows: Collection[StatusRow]) -> RenderableType:
    """A table with a row a node, and one line that sums up."""
    table = Table("node", "state", "why", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(row.node, _state(row), Text("\n".join(_reasons(row))))
    stale = sum(row.state != State.FRESH for row in rows)
    may = sum(row.state != State.FRESH and not row.certain for row in rows)
    summary = f"{stale} of {len(rows)} nodes would run" if stale else "everything is fresh"
    summary += f", {may} of them only if the nodes before make something new" if may else ""
    parts: list[RenderableType] = [table, Text(f"\n{summary}.")]
    if mistakes := dict.fromkeys(text for row in rows for text in row.mistakes):
        listed = "\n".join(f"  - {text}" for text in mistakes)
        parts.append(Text(f"\nTo be mended first:\n{listed}", style="red"))
    return Group(*parts)


def render_explanation(explanation: Explanation) -> RenderableType:
    """Why a node would run, what it is made from, and its remembered runs."""
    row = explanation.status
    parts: list[RenderableType] = [Text.assemble((row.node, "bold"), ": ", _state(row))]
    parts += [Text(f"  {reason}") for reason in _reasons(row)]
    if explanation.fingerprint:
        parts.append(Text(f"fingerprint {explanation.fingerprint[:FINGERPRINT_LENGTH]}"))
    for cause, components in _by_cause(explanation).items():
        parts.append(Text(f"{cause} ({len(components)})", style="bold"))
        lines = [f"{name}: {_short(cause, value)}" for name, value in sorted(components.items())]
        if len(lines) > _SHOWN:
            lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more (--json shows all)"]
        parts.append(Padding(Text("\n".join(lines)), (0, 0, 0, 2)))
    if explanation.runs:
        parts.append(_render_runs(explanation))
    return Group(*parts)


def render_removed(removed: Collection[Removed], dry_run: bool) -> RenderableType:
    """What garbage collection removed."""
    lines = [f"{item.path}  {_size(item.size)}" for item in removed]
    total = _size(sum(item.size for item in removed))
    verb = "would be removed" if dry_run else "removed"
    return Text("\n".join([*lines, f"{len(removed)} {verb}, {total}."]))


def render_problems(problems: Collection[Problem]) -> RenderableType:
    """What differs from what was written."""
    if not problems:
        return Text("All artifacts are as they were written.", style="green")
    return Text("\n".join(f"{problem.path}: {problem.text}" for problem in problems), style="red")


def _state(row: StatusRow) -> Text:
    return Text(row.state, style=_STYLES[State(row.state)])


def _reasons(row: StatusRow) -> list[str]:
    reasons = list(row.reasons)
    if row.interrupted:
        reasons.append("the last run was interrupted")
    if row.action == "activate":
        reasons.append("an earlier run's outputs will be put back")
    if row.action == "fetch":
        reasons.append("its outputs will be taken from the cache")
    return reasons


def _by_cause(explanation: Explanation) -> dict[str, dict[str, str]]:
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    for component, value in explanation.components.items():
        cause, _, name = component.partition(":")
        grouped[cause][name] = value
    return grouped


def _short(cause: str, value: str) -> str:
    return value[:FINGERPRINT_LENGTH] if cause in (Cause.CODE, Cause.INPUT) else value


def _render_runs(explanation: Explanation) -> Table:
    table = Table("run", "finished", "seconds", "", box=None, pad_edge=False, header_style="bold")
    for run in explanation.runs:
        notes = [word for word in ("in_place", "accepted") if run[word]]
        seconds = "" if run["seconds"] is None else f"{run['seconds']:.1f}"
        table.add_row(
            run["fingerprint"][:FINGERPRINT_LENGTH],
            run["finished_at"] or "",
            seconds,
            ", ".join(notes).replace("_", " "),
        )
    return table


def _size(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"
