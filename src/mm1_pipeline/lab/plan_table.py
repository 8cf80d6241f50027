"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def render_plan(plan: Mapping[str, Any]) -> Group:
    """Tables of what `plan_pretraining` gives."""
    return Group(
        _pairs("Parameters", plan["parameters"]),
        _pairs("Operations a step", plan["flops_per_step"]),
        _memory(plan["memory"]),
        _pairs("Time", {name: value for name, value in plan["time"].items() if value is not None}),
        _pairs("Data", plan["data"]),
        _pairs("Assumed", plan["assumptions"]),
    )


def short(value: Any) -> str:
    """A number with three digits and a unit; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
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


def _memory(rows: list[dict[str, Any]]) -> Table:
    """Columns are the ways to lay a training out."""
    table = Table(title="Memory a device, GiB", title_justify="left", box=None)
    table.add_column("", min_width=26)
    for row in rows:
        names = {"sharded": "sharded", "gradient_checkpointing": "recomputing"}
        kinds = [word for name, word in names.items() if row[name]]
        table.add_column(" + ".join(kinds) or "plain", justify="right")
    for name in ("weights_gib", "gradients_gib", "optimizer_gib", "activations_gib", "total_gib"):
        table.add_row(name.removesuffix("_gib"), *(f"{row[name]:.2f}" for row in rows))
    table.add_row("fits", *("yes" if row["fits"] else "no" for row in rows))
    return table
