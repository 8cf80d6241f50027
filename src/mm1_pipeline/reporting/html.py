"""The report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mm1_pipeline.config.report import ReportConfig
from mm1_pipeline.ground.formatting import visible
from mm1_pipeline.reporting.inputs import ReportInputs, Rows
from mm1_pipeline.reporting.page import Block, Chart, Section
from mm1_pipeline.reporting.sections.data import data_section
from mm1_pipeline.reporting.sections.examples import examples_section
from mm1_pipeline.reporting.sections.experts import experts_section
from mm1_pipeline.reporting.sections.headline import headline_section
from mm1_pipeline.reporting.sections.held_out import held_out_section
from mm1_pipeline.reporting.sections.provenance import provenance_section
from mm1_pipeline.reporting.sections.results import results_section
from mm1_pipeline.reporting.sections.sequences import sequences_section
from mm1_pipeline.reporting.sections.training import training_section
from mm1_pipeline.reporting.sections.vision import vision_section

SECTIONS: tuple[Callable[[ReportInputs], Section | None], ...] = (
    headline_section,
    data_section,
    sequences_section,
    training_section,
    experts_section,
    vision_section,
    held_out_section,
    results_section,
    examples_section,
    provenance_section,
)
"""The page in reading order; a section that has no data gives None."""

_TEMPLATE = "report.html.j2"


def render_report(
    config: ReportConfig,
    *,
    ingest_report: Mapping[str, Any] | None = None,
    shard_report: Mapping[str, Any] | None = None,
    mixture: Mapping[str, Any] | None = None,
    training: Mapping[str, Rows] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    held_out_loss: Mapping[str, Any] | None = None,
    vision_held_out: Mapping[str, Any] | None = None,
    predictions_dir: Path | None = None,
    records_dir: Path | None = None,
    shards: Mapping[str, Path] | None = None,
    models: Mapping[str, Path] | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """Shows a run on one page that needs nothing but itself.

    The page holds no script and loads nothing; its own policy forbids both. Equal inputs give
    equal bytes. A part that is missing simply has no section.

    Args:
        config: parameters of the stage `report`.
        ingest_report: content of ingest_report.json.
        shard_report: content of shard_report.json.
        mixture: summary of the mixture snapshot.
        training: rows of training_<stage>.jsonl, by stage.
        evaluation: content of evaluation.json.
        held_out_loss: content of held_out_loss.json.
        vision_held_out: content of vision_held_out.json.
        predictions_dir: folder with `<model>/<task>_<shots>shot.jsonl`.
        records_dir: the artifact that holds `records/`, for the images of the examples.
        shards: folders of packed sequences, by what they are.
        models: folder of each stage's model (model.safetensors, config.json).
        versions: versions of libraries that run now, by name.

    Returns:
        The page.
    """
    inputs = ReportInputs(
        config=config,
        ingest_report=ingest_report,
        shard_report=shard_report,
        mixture=mixture,
        training=training or {},
        evaluation=evaluation,
        held_out_loss=held_out_loss,
        vision_held_out=vision_held_out,
        predictions_dir=predictions_dir,
        records_dir=records_dir,
        shards=shards or {},
        models=models or {},
        versions=versions or {},
    )
    sections = [section for build in SECTIONS if (section := build(inputs))]
    return render_page(config.title, sections)


def render_page(title: str, sections: Sequence[Section]) -> str:
    """A page of sections that needs nothing but itself."""
    return _environment().get_template(_TEMPLATE).render(title=title, sections=sections)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mm1_pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_make_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rows"] = _side_by_side
    return environment


def _side_by_side(blocks: Iterable[Block]) -> list[list[Block]]:
    """Gathers narrow charts that follow each other, to stand side by side."""
    rows: list[list[Block]] = []
    for block in blocks:
        if rows and _is_narrow(block) and _is_narrow(rows[-1][-1]):
            rows[-1].append(block)
        else:
            rows.append([block])
    return rows


def _is_narrow(block: Block) -> bool:
    return isinstance(block, Chart) and not block.wide


def _make_visible(value: Any) -> Any:
    """Applied to everything that the template writes, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
