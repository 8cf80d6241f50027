"""Section: scores of every model, and the paper's for orientation."""

from __future__ import annotations

from mm1_pipeline.ground.formatting import MISSING, count, decimal
from mm1_pipeline.reporting.inputs import ReportInputs, is_trained, metric_name
from mm1_pipeline.reporting.page import Cell, Column, Section, Table
from mm1_pipeline.reporting.sections.beside_paper import paper_tables


def results_section(inputs: ReportInputs) -> Section | None:
    """Models by tasks and shots, and beside them the paper's table."""
    if not inputs.tasks:
        return None
    return Section(
        "results",
        "Few-shot results",
        "Values with their standard error; n is the number of scored questions or images. "
        "A number of shots is the number of solved examples shown before the question.",
        (
            *(
                table
                for task in inputs.tasks
                for table in (_task_table(inputs, task), *_details_tables(inputs, task))
            ),
            *paper_tables(inputs),
        ),
    )


def _task_table(inputs: ReportInputs, task: str) -> Table:
    """One table a task, so that columns stay few however many tasks there are."""
    shots = inputs.shots(task)
    models = [name for name in inputs.scored_models if _has_scores(inputs, name, task, shots)]
    columns = (
        Column("Model", numeric=False),
        *(Column(f"{number} shots") for number in shots),
        Column("n"),
    )
    rows = tuple(
        (
            name,
            *(_score_cell(inputs, name, task, number) for number in shots),
            _sample_sizes(inputs, name, task, shots),
        )
        for name in models
    )
    emphasised = frozenset(i for i, name in enumerate(models) if is_trained(name))
    caption = f"{task}: {metric_name(inputs.metric(task))}"
    return Table(caption, columns, rows, emphasised, _note(inputs, models, task, shots))


def _has_scores(inputs: ReportInputs, model: str, task: str, shots: list[int]) -> bool:
    return any(inputs.score(model, task, number) for number in shots)


def _score_cell(inputs: ReportInputs, model: str, task: str, shots: int) -> Cell | str:
    score = inputs.score(model, task, shots)
    if score is None:
        return MISSING
    return Cell(decimal(score["value"]), f"± {decimal(score['stderr'])}")


def _sample_sizes(inputs: ReportInputs, model: str, task: str, shots: list[int]) -> str:
    scores = [inputs.score(model, task, number) for number in shots]
    return ", ".join(dict.fromkeys(count(score["n"]) for score in scores if score))


def _note(inputs: ReportInputs, models: list[str], task: str, shots: list[int]) -> str:
    """What the number must not be compared with, and what could not be asked."""
    scores = [inputs.score(model, task, number) for model in models for number in shots]
    failed = max((score.get("failed", 0) for score in scores if score), default=0)
    sentences = []
    if reason := inputs.entry(task).get("not_comparable"):
        sentences.append(f"Not comparable with published numbers: {reason}.")
    if failed:
        sentences.append(f"{count(failed)} of the n items could not be asked and count as wrong.")
    return " ".join(sentences)


def _details_tables(inputs: ReportInputs, task: str) -> list[Table]:
    """Parts of the main model's number at the fewest shots, where it has any."""
    model, shots = inputs.main_model, inputs.shots(task)[0]
    score = inputs.score(model, task, shots) if model else None
    tables = []
    for division, parts in (score or {}).get("details", {}).items():
        if not isinstance(parts, dict) or not all(
            isinstance(part, dict) and "n" in part for part in parts.values()
        ):
            continue
        names = list(dict.fromkeys(name for part in parts.values() for name in part if name != "n"))
        columns = (
            Column("Part", numeric=False),
            *(Column(name.replace("_", " ")) for name in names),
            Column("n"),
        )
        rows = tuple(
            (part, *(decimal(values.get(name)) for name in names), count(values["n"]))
            for part, values in parts.items()
        )
        kind = "part" if division == "by_category" else division.removeprefix("by_")
        tables.append(
            Table(f"{task} by {kind.replace('_', ' ')}: {model}, {shots} shots", columns, rows)
        )
    return tables
