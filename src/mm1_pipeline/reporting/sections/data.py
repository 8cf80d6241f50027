"""Section: what became of the raw records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.ground.formatting import count, percent
from mm1_pipeline.reporting.charts import stacked_bars
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import Cell, Chart, Column, Section, Table, without_repeats

_KEPT, _REJECTED = 0, 3
"""Series colours."""


def data_section(inputs: ReportInputs) -> Section | None:
    """Records and images read, kept and rejected, by source and reason."""
    if not inputs.ingest_report:
        return None
    sources: Mapping[str, Any] = inputs.ingest_report["sources"]
    read = sum(source["read"] for source in sources.values())
    kept = sum(source["kept"] for source in sources.values())
    return Section(
        "data",
        "Data",
        f"{count(kept)} of {count(read)} records were kept ({percent(_share(kept, read))}). "
        f"Nothing is dropped silently: the other {count(read - kept)} lie in quarantine, each "
        "with its source, key and reason.",
        (
            Chart(
                "Records kept",
                stacked_bars(
                    {name: _shares(source) for name, source in sources.items()},
                    title="Share of records kept, by source",
                    colors=(_KEPT, _REJECTED),
                    labels=[
                        f"{count(source['kept'])} of {count(source['read'])}"
                        for source in sources.values()
                    ],
                ),
                legend=(("kept", _KEPT), ("rejected", _REJECTED)),
            ),
            _sources_table(sources),
            *_reasons_table(sources),
            *_compared_table(inputs.ingest_report.get("decontamination", {})),
        ),
    )


def _sources_table(sources: Mapping[str, Any]) -> Table:
    columns = (
        Column("Source", numeric=False),
        Column("Kind", numeric=False),
        Column("Format", numeric=False),
        Column("For", numeric=False),
        Column("Records read"),
        Column("kept"),
        Column("rejected"),
        Column("Images read"),
        Column("kept"),
    )
    rows = []
    for name, source in sources.items():
        images = source.get("images", {})
        rows.append(
            (
                name,
                source["kind"],
                source["format"],
                source["split"],
                count(source["read"]),
                Cell(count(source["kept"]), strong=True),
                count(source["read"] - source["kept"]),
                count(images.get("read")),
                Cell(count(images.get("kept")), strong=True),
            )
        )
    return Table("Sources", columns, tuple(rows))


def _reasons_table(sources: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = []
    for name, source in sources.items():
        for what, part in (("record", source), ("image", source.get("images", {}))):
            reasons = sorted(part.get("rejected", {}).items(), key=lambda item: (-item[1], item[0]))
            rows += [
                (name, what, reason, count(number), percent(_share(number, part["read"])))
                for reason, number in reasons
                if number
            ]
    if not rows:
        return ()
    columns = (
        Column("Source", numeric=False),
        Column("What", numeric=False),
        Column("Reason", numeric=False),
        Column("Rejected"),
        Column("of all read"),
    )
    return (Table("Why records and images were rejected", columns, without_repeats(rows)),)


def _compared_table(decontamination: Mapping[str, Any]) -> tuple[Table, ...]:
    """The evaluation data that records were compared with; what was found is among the reasons."""
    rows = []
    for name, asked in decontamination.get("benchmarks", {}).items():
        for use, counts in (("asked", asked), ("shown as examples", asked.get("shots", {}))):
            if "records" in counts:
                numbers = (counts[part] for part in ("records", "images", "texts", "failed"))
                rows.append((name, use, *map(count, numbers)))
    if not rows:
        return ()
    columns = (
        Column("Evaluation data", numeric=False),
        Column("Used", numeric=False),
        Column("Records"),
        Column("Images"),
        Column("Texts"),
        Column("unreadable"),
    )
    return (Table("What no training record may hold", columns, without_repeats(rows)),)


def _shares(source: Mapping[str, Any]) -> tuple[float, float]:
    kept = _share(source["kept"], source["read"])
    return kept, 1 - kept if source["read"] else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
