"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def render_plan(plan: Mapping[str, Any]) -> Group:
    """Tables of what `plan_environment` gives: stages side by side, then what differs inside."""
    stages: Mapping[str, Mapping[str, Any]] = plan["stages"]
    return Group(
        *(
            _stages(title, {name: stage[part] for name, stage in stages.items()})
            for title, part in _PARTS.items()
        ),
        *(
            _memory(f"Memory a device, GiB: {' = '.join(names)}", rows)
            for names, rows in _equal({n: s["memory"] for n, s in stages.items() if s["memory"]})
        ),
        _stages("Weights that one device holds in an evaluation", plan["evaluation"]),
        _pairs("All trainings", {n: v for n, v in plan["total"].items() if v is not None}),
        _pairs("Assumed", plan["assumptions"]),
    )


_PARTS = {
    "Parameters": "parameters",
    "Operations a step": "flops_per_step",
    "Time": "time",
    "Data": "data",
    "Checkpoint": "checkpoint",
    "Assumed of each": "assumptions",
}


def _equal(tables: Mapping[str, Any]) -> list[tuple[list[str], Any]]:
    """Stages whose tables are the same, once."""
    found: list[tuple[list[str], Any]] = []
    for name, table in tables.items():
        for names, other in found:
            if other == table:
                names.append(name)
                break
        else:
            found.append(([name], table))
    return found


def _stages(title: str, columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """A column a stage; what none of them has is left out."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("", min_width=26)
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    names = dict.fromkeys(name for values in columns.values() for name in values)
    for name in sorted(names, key=lambda name: name in {"total", "active"}):
        found = [values.get(name) for values in columns.values()]
        if any(value is not None for value in found):
            cells = ("" if value is None else short(value) for value in found)
            table.add_row(name.replace("_", " ").replace("gib", "GiB"), *cells)
    return table


def short(value: Any) -> str:
    """A number with three digits and a unit; other values as they are."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(min_width=26)
    table.add_column(justify="right")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), short(value))
    return table


def _memory(title: str, rows: list[dict[str, Any]]) -> Table:
    """Columns are the ways to lay a training out."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("", min_width=26)
    for row in rows:
        names = {"sharded": "sharded", "gradient_checkpointing": "recomputing"}
        kinds = [word for name, word in names.items() if row[name]]
        table.add_column(" + ".join(kinds) or "plain", justify="right")
    for name in ("weights_gib", "gradients_gib", "optimizer_gib", "activations_gib", "total_gib"):
        table.add_row(name.removesuffix("_gib"), *(f"{row[name]:.2f}" for row in rows))
    table.add_row("sequences at once", *(str(row["microbatch_size"]) for row in rows))
    table.add_row("fits", *(short(row["fits"]) for row in rows))
    return table
