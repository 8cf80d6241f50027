"""Section: the image encoder at its own task, on what its training never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.ground.formatting import count, decimal, percent
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import Cell, Column, Section, Table, without_repeats

_DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def vision_section(inputs: ReportInputs) -> Section | None:
    """Retrieval of an encoder trained by CLIP, or patch errors of one trained by AIM."""
    report = inputs.vision_held_out or {}
    if not report.get("sets"):
        return None
    is_clip = report["objective"] == "clip"
    table = _retrieval_table(report["sets"]) if is_clip else _patches_table(report["sets"])
    about = (
        "Held-out images are matched with their texts among all those of their set. Equal texts "
        "are one candidate; chance is what a random order would find."
        if is_clip
        else "Squared error of the patches after a drawn prefix, beside that of predicting 0."
    )
    return Section("vision", "Image encoder, held out", about, (table,))


def _retrieval_table(sets: Mapping[str, Any]) -> Table:
    ranks = next(iter(sets.values()))["image_to_text"]["recall"]
    columns = (
        Column("Set", numeric=False),
        Column("Direction", numeric=False),
        Column("Queries"),
        Column("Candidates"),
        *(column for rank in ranks for column in (Column(f"R@{rank}"), Column("Chance"))),
    )
    rows = [
        (
            name,
            shown,
            count(result[direction]["n"]),
            count(result[direction]["candidates"]),
            *(
                cell
                for rank in ranks
                for cell in (
                    Cell(percent(result[direction]["recall"].get(rank)), strong=rank == "1"),
                    percent(result[direction]["chance"].get(rank)),
                )
            ),
        )
        for name, result in sets.items()
        for direction, shown in _DIRECTIONS.items()
    ]
    return Table("Retrieval on held-out pairs", columns, without_repeats(rows))


def _patches_table(sets: Mapping[str, Any]) -> Table:
    columns = (
        Column("Set", numeric=False),
        Column("Images"),
        Column("Loss"),
        Column("Of predicting 0"),
    )
    rows = tuple(
        (
            name,
            count(result["n"]),
            Cell(decimal(result["loss"], 3), strong=True),
            decimal(result["constant"], 3),
        )
        for name, result in sets.items()
    )
    return Table("Patch loss on held-out images", columns, rows)
