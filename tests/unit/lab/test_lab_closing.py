"""A run of the lab ends with its verdicts and the page that explains them."""

import logging

from kedro.io import DataCatalog, MemoryDataset

from mm1_pipeline.datasets.reports import HTMLReportDataset
from mm1_pipeline.hooks import ClosingHooks
from mm1_pipeline.pipelines.ablate import pipeline as ablate
from mm1_pipeline.pipelines.lr_law import pipeline as lr_law

LESSONS = {
    "lessons": {
        "L7_few_shot": {
            "measure": "colour 4-shot",
            "verdict": "not shown",
            "delta": 80.5,
            "interval": [70.25, 90.75],
            "seeds": 1,
        }
    }
}


def closing_lines(pipeline, page: str, caplog) -> list[str]:
    catalog = DataCatalog({
        "lessons": MemoryDataset(LESSONS),
        page: HTMLReportDataset(filepath=f"reports/{page}.html"),
    })  # fmt: skip
    with caplog.at_level(logging.INFO):
        ClosingHooks().after_pipeline_run(pipeline, catalog)
    return [record.getMessage() for record in caplog.records if record.name.endswith("hooks")]


def test_the_grid_ends_with_every_verdict_and_its_page(caplog):
    lines = closing_lines(ablate.create_pipeline(), "lessons_report", caplog)
    assert lines[0] == "L7_few_shot: not shown, +80.5 [+70.2, +90.8] points (seeds: 1)"
    assert lines[1].startswith("Report: ")
    assert lines[1].endswith("reports/lessons_report.html")


def test_the_law_ends_with_its_page(caplog):
    lines = closing_lines(lr_law.create_pipeline(), "lr_law_report", caplog)
    assert len(lines) == 1
    assert lines[0].endswith("reports/lr_law_report.html")


def test_a_part_of_the_grid_without_its_page_says_nothing(caplog):
    part = ablate.create_pipeline().filter(node_names=["judge_arms"])
    assert closing_lines(part, "lessons_report", caplog) == []
