"""Section: scores of every model, and the paper's for orientation."""

from __future__ import annotations

from mm1_pipeline.reporting import paper
from mm1_pipeline.reporting.formatting import MISSING, count, decimal
from mm1_pipeline.reporting.inputs import ReportInputs, is_trained, metric_name
from mm1_pipeline.reporting.page import Cell, Column, Section, Table


def results_section(inputs: ReportInputs) -> Section | None:
    """Models by tasks and shots, and beside them the paper's table."""
    if not inputs.tasks:
        return None
    return Section(
        "results",
        "Few-shot results",
        "Values with their standard error; n is the number of scored questions or images. "
        "A number of shots is the number of solved examples shown before the question.",
        (*(_task_table(inputs, task) for task in inputs.tasks), _paper_table()),
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
    return Table(caption, columns, rows, emphasised, _failures(inputs, models, task, shots))


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


def _failures(inputs: ReportInputs, models: list[str], task: str, shots: list[int]) -> str:
    scores = [inputs.score(model, task, number) for model in models for number in shots]
    failed = max((score.get("failed", 0) for score in scores if score), default=0)
    if not failed:
        return ""
    return f"{count(failed)} of the n items could not be asked and count as wrong."


def _paper_table() -> Table:
    columns = (
        Column("Model", numeric=False),
        Column("Shots"),
        *(Column(task, unit=metric) for task, metric in paper.TASKS),
    )
    rows = tuple(
        (row.model, str(row.shots), *(decimal(score) for score in row.scores))
        for row in paper.PRETRAINING
    )
    return Table(
        "The paper's: other data and sizes, not comparable in value",
        columns,
        rows,
        frozenset(i for i, row in enumerate(paper.PRETRAINING) if row.is_mm1),
        note=f"Source: {paper.SOURCE}",
    )
