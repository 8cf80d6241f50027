"""Section: packed sequences and their mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.ground.formatting import compact, count, decimal, percent
from mm1_pipeline.reporting.charts import stacked_bars, target_bars
from mm1_pipeline.reporting.inputs import ReportInputs, Rows
from mm1_pipeline.reporting.page import (
    Block,
    Cell,
    Chart,
    Column,
    Section,
    Table,
    Tile,
    Tiles,
    without_repeats,
)
from mm1_pipeline.reporting.series import mean_shares

_FILLED, _PADDING = 0, 7
"""Series colours."""


def sequences_section(inputs: ReportInputs) -> Section | None:
    """Sequences, tokens, images and fill of every source, and the shares of the mixture."""
    if not inputs.shard_report:
        return None
    sources: Mapping[str, Any] = inputs.shard_report["sources"]
    packing = inputs.shard_report.get("packing", {})
    length = packing.get("sequence_length")
    return Section(
        "sequences",
        "Sequences",
        "Records are packed into sequences "
        + (f"of {count(length)} positions; " if length else "of one length; ")
        + "attention never crosses from one record to the next.",
        (
            _totals(inputs.shard_report),
            _fill_chart(sources),
            _sources_table(sources),
            *_mixture_blocks(inputs),
        ),
    )


def _totals(report: Mapping[str, Any]) -> Tiles:
    streams = report["streams"].values()
    total = {
        key: sum(stream[key] for stream in streams)
        for key in ("sequences", "text_tokens", "image_tokens", "images")
    }
    vocabulary = report.get("tokenizer", {}).get("vocab_size")
    return Tiles(
        (
            Tile("Training sequences", count(total["sequences"])),
            Tile("Text tokens", compact(total["text_tokens"]), _vocabulary_detail(vocabulary)),
            Tile("Image tokens", compact(total["image_tokens"])),
            Tile("Images", count(total["images"])),
        )
    )


def _vocabulary_detail(size: int | None) -> str:
    return f"vocabulary of {count(size)}" if size else ""


def _fill_chart(sources: Mapping[str, Any]) -> Chart:
    fills = {name: float(source["train"]["fill"]) for name, source in sources.items()}
    return Chart(
        "Positions that hold a token, training sequences",
        stacked_bars(
            {name: (fill, 1 - fill) for name, fill in fills.items()},
            title="Fill of the training sequences, by source",
            colors=(_FILLED, _PADDING),
            labels=[percent(fill) for fill in fills.values()],
        ),
        legend=(("filled", _FILLED), ("padding", _PADDING)),
    )


def _sources_table(sources: Mapping[str, Any]) -> Table:
    columns = (
        Column("Source", numeric=False),
        Column("Stream", numeric=False),
        Column("Split", numeric=False),
        Column("Records"),
        Column("Sequences"),
        Column("Text tokens"),
        Column("Image tokens"),
        Column("Images"),
        Column("Fill"),
    )
    rows = tuple(
        (
            name if split == "train" else "",
            source["kind"] if split == "train" else "",
            split,
            count(source[split]["records"]),
            count(source[split]["sequences"]),
            count(source[split]["text_tokens"]),
            count(source[split]["image_tokens"]),
            count(source[split]["images"]),
            Cell(percent(source[split]["fill"]), strong=split == "train"),
        )
        for name, source in sources.items()
        for split in ("train", "validation")
        if split in source
    )
    return Table("Sources after packing", columns, rows)


def _mixture_blocks(inputs: ReportInputs) -> list[Block]:
    planned = planned_shares(inputs.mixture)
    blocks: list[Block] = []
    for stage, rows in inputs.training.items():
        if measured := mean_shares(rows):
            blocks.append(_mixture_chart(stage, measured, planned, rows))
    if inputs.mixture:
        blocks.append(_passes_table(inputs.mixture))
    return blocks


def _mixture_chart(
    stage: str, measured: Mapping[str, float], planned: Mapping[str, float], rows: Rows
) -> Chart:
    svg = target_bars(
        {stream: (share, planned.get(stream)) for stream, share in measured.items()},
        title=f"Mixture of {stage}, measured and planned",
        labels=[
            f"{percent(share, 2)}, planned {percent(planned.get(stream), 2)}"
            for stream, share in measured.items()
        ],
    )
    return Chart(
        f"Shares of sequences, measured over {count(len(rows))} steps of {stage}; lines mark the "
        "plan",
        svg,
    )


def planned_shares(mixture: Mapping[str, Any] | None) -> dict[str, float]:
    """Planned share of each stream, from the summary of the mixture snapshot."""
    streams = (mixture or {}).get("streams", {})
    return {name: float(stream["share"]) for name, stream in streams.items()}


def _passes_table(mixture: Mapping[str, Any]) -> Table:
    """How often the training reads each source, as the snapshot plans it."""
    columns = (
        Column("Stream", numeric=False),
        Column("Source", numeric=False),
        Column("Share of stream"),
        Column("Sequences"),
        Column("Drawn"),
        Column("Passes"),
    )
    rows = [
        (
            stream,
            name,
            percent(source["weight"]),
            count(source["sequences"]),
            count(source["drawn"]),
            decimal(source["epochs"], 2),
        )
        for stream, entry in mixture["streams"].items()
        for name, source in entry["sources"].items()
    ]
    caption = f"How often {count(mixture['num_steps'])} steps of "
    caption += f"{count(mixture['global_batch_size'])} sequences read each source; "
    window = mixture["window_batches"]
    caption += "each batch holds" if window == 1 else f"each {count(window)} batches hold"
    caption += " the shares exactly"
    return Table(caption, columns, without_repeats(rows))
