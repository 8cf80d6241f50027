"""Section: losses on what training never saw, and what the right image is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.ground.formatting import count, decimal, interval, signed
from mm1_pipeline.reporting.charts import WIDE, Dot, dot_chart
from mm1_pipeline.reporting.differences import Difference
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import (
    Block,
    Cell,
    Chart,
    Column,
    Section,
    Table,
    without_repeats,
)

_WRONG_IMAGES = {"blank_minus_right": ("blank", 1), "shuffled_minus_right": ("shuffled", 4)}
"""Name and series colour of what stands in for the right image."""
_DIGITS = 3


def held_out_section(inputs: ReportInputs) -> Section | None:
    """Losses of captions with the right, a blank and another image, and of each stream."""
    models: Mapping[str, Any] = (inputs.held_out_loss or {}).get("models", {})
    blocks: list[Block] = []
    for name, losses in models.items():
        if captions := losses.get("captions"):
            blocks += [_captions_chart(name, captions), _captions_table(name, captions)]
        if losses.get("streams"):
            blocks.append(_losses_table(name, losses))
    if not blocks:
        return None
    return Section(
        "held-out",
        "Held-out loss",
        "Every caption is read with its own image, with a blank one and with another caption's. "
        "Where the wrong image costs more, the model reads what it sees. Nats a token, lower is "
        "better; differences are paired, caption by caption.",
        tuple(blocks),
    )


def _captions_chart(model: str, captions: Mapping[str, Any]) -> Chart:
    groups = {
        name: [
            Dot(color, losses[key]["mean"], losses[key]["low"], losses[key]["high"])
            for key, (_, color) in _WRONG_IMAGES.items()
        ]
        for name, losses in captions.items()
    }
    svg = dot_chart(
        groups,
        title=f"Loss that a wrong image costs {model}",
        label="loss above that with the right image (nats a token)",
        width=WIDE,
        from_zero=True,
    )
    legend = tuple((f"{wrong} image", color) for wrong, color in _WRONG_IMAGES.values())
    return Chart(f"{model}: what a wrong image costs, with 95 % intervals", svg, legend)


def _captions_table(model: str, captions: Mapping[str, Any]) -> Table:
    columns = (
        Column("Captions", numeric=False),
        Column("n"),
        Column("Right image"),
        Column("Instead", numeric=False),
        Column("Loss"),
        Column("Difference"),
        Column("95 % interval"),
        Column("Does seeing help?", numeric=False),
    )
    rows = [
        _captions_row(name, losses, key, wrong)
        for name, losses in captions.items()
        for key, (wrong, _) in _WRONG_IMAGES.items()
    ]
    return Table(f"{model}: caption losses", columns, without_repeats(rows, columns=3))


def _captions_row(
    name: str, losses: Mapping[str, Any], key: str, wrong: str
) -> tuple[Cell | str, ...]:
    difference = Difference.read(losses[key])
    assert difference is not None
    return (
        name,
        count(losses["n"]),
        Cell(decimal(losses["right"], _DIGITS), strong=True),
        wrong,
        decimal(losses[wrong], _DIGITS),
        signed(difference.mean, _DIGITS),
        interval(difference.low, difference.high, _DIGITS),
        Cell(difference.answer, verdict=difference.verdict),
    )


def _losses_table(model: str, losses: Mapping[str, Any]) -> Table:
    columns = (
        Column("Of", numeric=False),
        Column("Held-out sequences", numeric=False),
        Column("Tokens"),
        Column("Loss"),
    )
    rows = tuple(
        (what, name, count(entry["n_tokens"]), Cell(decimal(entry["loss"], _DIGITS), strong=True))
        for what, group in (("stream", "streams"), ("source", "sources"))
        for name, entry in losses.get(group, {}).items()
    )
    return Table(f"{model}: loss of each stream and source", columns, without_repeats(rows))
