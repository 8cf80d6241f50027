from __future__ import annotations

import pytest
from kedro_rerun.kedro_graph import describe_options

from mm1_pipeline.datasets.artifact import ArtifactDataset
from mm1_pipeline.datasets.reports import (
    EvaluationDataset,
    IngestReportDataset,
    JSONReportDataset,
    TrainingLogDataset,
)

ROWS = [
    {"step": 1, "loss": 2.5, "losses": {"text": 2.5}},
    {"step": 2, "loss": 2.0, "losses": {"text": 2.0}},
]


def test_json_report_round_trip_replaces_the_file_whole(tmp_path):
    dataset = JSONReportDataset(filepath=str(tmp_path / "reports" / "a.json"))
    dataset.save({"value": 1})
    dataset.save({"value": 2})
    assert dataset.load() == {"value": 2}
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["a.json"]


def test_a_number_that_is_none_is_refused_by_json(tmp_path):
    dataset = JSONReportDataset(filepath=str(tmp_path / "a.json"))
    with pytest.raises(Exception, match="JSON compliant"):
        dataset.save({"value": float("nan")})
    assert not dataset.exists()


def test_training_log_is_one_row_a_line_and_previews_its_curves(tmp_path):
    dataset = TrainingLogDataset(filepath=str(tmp_path / "training.jsonl"))
    dataset.save(ROWS)
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 2
    assert dataset.load() == ROWS
    assert dataset.preview()["data"]


def test_ingest_report_previews_what_is_kept(tmp_path):
    dataset = IngestReportDataset(filepath=str(tmp_path / "ingest_report.json"))
    source = {"read": 3, "kept": 2, "rejected": {"duplicate": 1}}
    images = {"read": 0, "kept": 0, "rejected": {}}
    dataset.save({"sources": {"pairs": {**source, "images": images}}, "totals": source})
    assert dataset.preview()["data"]


@pytest.mark.parametrize(
    "make",
    [
        lambda metadata: EvaluationDataset(filepath="a.json", metadata=metadata),
        lambda metadata: ArtifactDataset(path="a", kind="model", metadata=metadata),
    ],
)
def test_metadata_for_plugins_makes_nothing_stale(make):
    assert describe_options(make({"layer": "one"})) == describe_options(make({"layer": "two"}))
