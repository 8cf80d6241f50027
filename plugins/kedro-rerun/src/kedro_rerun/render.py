"""Results of `maintenance` for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kedro_rerun.artifacts import FINGERPRINT_LENGTH, PARTS, STAGING, WORK, Removed
from kedro_rerun.fingerprint import Cause
from kedro_rerun.history import FOLDER
from kedro_rerun.maintenance import Explanation, Problem, StatusRow
from kedro_rerun.parameters import ORDER
from kedro_rerun.run_lock import STATE_FOLDER
from kedro_rerun.verdict import State

_STYLES = {State.FRESH: "green", State.STALE: "yellow", State.MISSING: "red"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHOWN = 12
_ORDER = (*map(Cause, ("params", "library", "input", "wiring", "catalog", "code")),)
_TITLES: dict[str, str] = {
    Cause.PARAMS: "parameters",
    Cause.LIBRARY: "libraries",
    Cause.INPUT: "inputs",
}
_FOLDERS = {WORK: "progress of runs", PARTS: "parts", STAGING: "left-overs"}


def render_status(rows: Collection[StatusRow]) -> RenderableType:
    """A table with a row a node, and one line that sums up."""
    table = Table("node", "state", "why", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(row.node, _state(row), Group(*_reasons(row)))
    stale = sum(row.state != State.FRESH for row in rows)
    may = sum(row.state != State.FRESH and not row.certain for row in rows)
    summary = f"{stale} of {len(rows)} nodes would run" if stale else "everything is fresh"
    summary += f", {may} of them only if the nodes before make something new" if may else ""
    parts: list[RenderableType] = [table, Text(f"\n{summary}.")]
    if mistakes := dict.fromkeys(text for row in rows for text in row.mistakes):
        listed = "\n".join(f"  - {text}" for text in mistakes)
        parts.append(Text(f"\nTo be mended first:\n{listed}", style="red"))
    return Group(*parts)


def render_accepted(rows: Collection[StatusRow]) -> RenderableType:
    """What is fresh now, and what `accept --all` had to leave."""
    left = [row for row in rows if row.state != State.FRESH]
    accepted = [row.node for row in rows if row.state == State.FRESH]
    parts: list[RenderableType] = [Text(f"Accepted: {', '.join(accepted) or 'nothing'}.")]
    if left:
        parts += [Text("\nLeft, as more than code and libraries makes them stale:")]
        parts += [render_status(left)]
    return Group(*parts)


def render_explanation(explanation: Explanation) -> RenderableType:
    """Why a node would run, what it is made from, and its remembered runs."""
    row = explanation.status
    parts: list[RenderableType] = [Text.assemble((row.node, "bold"), ": ", _state(row))]
    parts += [Padding(reason, (0, 0, 0, 2)) for reason in _reasons(row)]
    grouped = _by_cause(explanation)
    for cause in sorted(grouped, key=lambda cause: (*_ORDER, cause).index(cause)):
        values = {name: text for name, text in grouped[cause].items() if not name.endswith(ORDER)}
        lines = [f"{name}: {_short(cause, text)}" for name, text in sorted(values.items())]
        shown = len(lines) if cause == Cause.PARAMS else _SHOWN
        if len(lines) > shown:
            lines = [*lines[:shown], f"and {len(lines) - shown} more (--json shows all)"]
        parts.append(Text(f"{_TITLES.get(cause, cause)} ({len(values)})", style="bold"))
        parts.append(Padding(Text("\n".join(lines)), (0, 0, 0, 2)))
    if explanation.runs:
        parts.append(_render_runs(explanation))
    if explanation.fingerprint:
        parts.append(Text(f"fingerprint {explanation.fingerprint[:FINGERPRINT_LENGTH]}"))
    return Group(*parts)


def render_removed(
    removed: Collection[Removed], dry_run: bool, data_root: Path, *, verbose: bool = False
) -> RenderableType:
    """What garbage collection removed: a line an artifact.

    Args:
        removed: folders and files.
        dry_run: whether they are still there.
        data_root: paths in it are told from there.
        verbose: a line for each path.
    """
    if verbose:
        table = _columns("path", "size")
        for item in removed:
            table.add_row(_inside(item.path, data_root).as_posix(), size_text(item.size))
    else:
        table = _columns("of", "what", "number", "size")
        sizes: dict[tuple[str, str], list[int]] = defaultdict(list)
        for item in removed:
            sizes[_kind_of_removed(_inside(item.path, data_root))].append(item.size)
        for (place, what), found in sorted(sizes.items()):
            table.add_row(place, what, str(len(found)), size_text(sum(found)))
    verb = "would be removed" if dry_run else "removed"
    total = Text(f"{len(removed)} {verb}, {size_text(sum(item.size for item in removed))}.")
    return Group(table, total) if removed else total


def render_problems(problems: Collection[Problem], deep: bool) -> RenderableType:
    """What differs from what was written, or what was compared where nothing does."""
    if problems:
        found = "\n".join(f"{problem.path}: {problem.text}" for problem in problems)
        return Text(found, style="red")
    if deep:
        return Text("All artifacts are as they were written: every file was hashed.", style="green")
    return Text(
        "Names and sizes of all files are as they were written. Contents were not compared: "
        "--deep does.",
        style="green",
    )


def _columns(*names: str) -> Table:
    """A table whose last columns are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        is_number = name in ("number", "size")
        table.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    return table


def _inside(path: Path, data_root: Path) -> Path:
    return path.relative_to(data_root) if path.is_relative_to(data_root) else path


def _kind_of_removed(path: Path) -> tuple[str, str]:
    """The artifact that something belonged to, and what it was of it."""
    for place, part in enumerate(path.parts):
        if part == STATE_FOLDER:
            what = {FOLDER: "records of runs"}.get(path.parts[place + 1], "copies of files")
            return "/".join(path.parts[: place + 1]), what
        if part in _FOLDERS:
            return "/".join(path.parts[:place]), _FOLDERS[part]
    return path.parent.as_posix(), "left-overs" if path.is_absolute() else "versions"


def _state(row: StatusRow) -> Text:
    return Text(row.state, style=_STYLES[State(row.state)])


def _reasons(row: StatusRow) -> list[Text]:
    """A paragraph each; nodes before are one line together, as wide as there is room."""
    prefix, suffix = f"{Cause.UPSTREAM}:", ": runs first"
    first = [reason for reason in row.reasons if reason.startswith(prefix)]
    reasons = [Text(reason) for reason in row.reasons if reason not in first]
    if len(first) > 1:
        names = [reason.removeprefix(prefix).removesuffix(suffix) for reason in first]
        told = f"{Cause.UPSTREAM}: {len(names)} nodes run first: {', '.join(names)}"
        reasons.append(Text(told, no_wrap=True, overflow="ellipsis"))
    else:
        reasons += map(Text, first)
    if row.interrupted:
        reasons.append(Text("the last run was interrupted"))
    if row.action == "activate":
        reasons.append(Text("an earlier run's outputs will be put back"))
    if row.action == "fetch":
        reasons.append(Text("its outputs will be taken from the cache"))
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


def size_text(size: float) -> str:
    """Bytes for a person."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"
