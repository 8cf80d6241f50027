"""A sweep for a terminal: what it would run, how far it is, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from kedro_rerun.render_runs import Column, Items, RunTable, duration, score_columns, summary
from kedro_rerun.sweep import FinishedSetting, PlannedSetting, Setting, Sweep


def render_planned(planned: Sequence[PlannedSetting]) -> RenderableType:
    """What each setting would run."""
    settings = [item.setting for item in planned]
    columns = [
        *_setting_columns(settings),
        Column("runs", tuple(str(len(item.runs)) for item in planned), True),
        Column("shares", tuple(str(len(item.shared)) for item in planned), True),
        Column(
            "takes",
            tuple(
                expected(item.seconds, item.unknown) if item.runs else "finished"
                for item in planned
            ),
            True,
        ),
    ]
    details = [[Items(item.runs, style="dim")] if item.runs else [] for item in planned]
    seconds = sum(item.seconds for item in planned)
    total = expected(seconds, sum(item.unknown for item in planned))
    number = sum(len(item.runs) for item in planned)
    return Group(
        RunTable(columns, (), details, ""),
        Text(f"\n{len(planned)} settings would run {number} nodes in {total}; nothing was run."),
    )


def planned_as_json(planned: Sequence[PlannedSetting]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "parameters": dict(item.setting.parameters),
            "would_run": list(item.runs),
            "shared": list(item.shared),
            "seconds_about": item.seconds,
            "nodes_never_timed": item.unknown,
        }
        for item in planned
    ]


def before(sweep: Sweep, place: int) -> str:
    """What is said when a setting begins."""
    item, past = sweep.planned()[place], sweep.finished_before(place)
    if past is not None:
        return f"[{place + 1}/{len(sweep.settings)}] {item.setting}: finished in run {past.number}."
    took = expected(item.seconds, item.unknown)
    runs = f"runs {len(item.runs)} nodes in {took}" if item.runs else "puts back what is finished"
    return f"[{place + 1}/{len(sweep.settings)}] {item.setting}: {runs}."


def after(sweep: Sweep, finished: Sequence[FinishedSetting]) -> str:
    """What is said when a setting has ended."""
    number, item = len(finished), finished[-1]
    left = len(sweep.settings) - number
    told = f"[{number}/{len(sweep.settings)}] "
    told += f"run {item.run.number} " if item.run is not None else ""
    took = duration(item.run.seconds) if item.run is not None else ""
    told += f"done, {took}." if item.is_done else f"failed: {(item.error or '').rstrip('.')}."
    waiting = sweep.planned()[number:]
    took = expected(sum(i.seconds for i in waiting), sum(i.unknown for i in waiting))
    return f"{told} {left} left, {took}." if left else told


def render_finished(finished: Sequence[FinishedSetting]) -> RenderableType:
    """Settings by scores; the scores that the settings change come first."""
    runs = [item.run for item in finished]
    columns = [
        Column("run", tuple(str(run.number) if run else "-" for run in runs), True),
        *_setting_columns([item.setting for item in finished]),
        Column("took", tuple(duration(run.seconds) if run else "-" for run in runs), True),
        Column("ran", tuple(f"{len(run.ran)}/{len(run.nodes)}" if run else "-" for run in runs)),
    ]
    scores = sorted(score_columns(runs), key=lambda column: len(set(column.cells)) < 2)
    details = [
        [] if item.is_done else [Text(f"failed: {item.error}", style="red")] for item in finished
    ]
    table = RunTable(columns, scores, details, "--json tells them")
    failed = sum(not item.is_done for item in finished)
    told = f"{failed} of {len(finished)} settings failed." if failed else ""
    return Group(Text(""), table, *([Text(told, style="red")] if told else []))


def finished_as_json(finished: Sequence[FinishedSetting]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "parameters": dict(item.setting.parameters),
            **(summary(item.run) if item.run is not None else {"run": None, "outcome": "failed"}),
            "error": item.error,
        }
        for item in finished
    ]


def _setting_columns(settings: Sequence[Setting]) -> list[Column]:
    """A column a varied parameter, under the end of its path that tells it from the others."""
    paths = list(settings[0].varied)
    columns = []
    for path in paths:
        steps = path.split(".")
        length = 1
        while length < len(steps) and any(
            other != path and other.split(".")[-length:] == steps[-length:] for other in paths
        ):
            length += 1
        title = " .".join(steps[-length:])
        columns.append(Column(title, tuple(each.varied[path] for each in settings), True))
    return columns


def expected(seconds: float, num_unknown: int) -> str:
    """How long something will take, as far as that is known.

    Args:
        seconds: of the nodes that have run before.
        num_unknown: how many have not.
    """
    if not num_unknown:
        return f"about {duration(seconds)}"
    return f"more than {duration(seconds)}" if seconds else "unknown time"
