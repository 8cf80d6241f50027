from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from report_samples import encoded_image, prediction, write_records

from mm1_pipeline.evaluation.scoring import baselines
from mm1_pipeline.reporting import inputs
from mm1_pipeline.reporting.predictions import choose_examples, find_records, read_predictions
from mm1_pipeline.reporting.thumbnails import thumbnail_uri


def _rows(num_good: int, num_bad: int) -> list[dict[str, Any]]:
    good = [prediction("sample_vqa", i, "a", 100.0) for i in range(num_good)]
    return good + [prediction("sample_vqa", 1_000 + i, "b", 0.0) for i in range(num_bad)]


def _counts(rows: list[Any]) -> tuple[int, int]:
    good = sum(row["score"] > 50 for row in rows)
    return good, len(rows) - good


def test_rights_and_wrongs_are_both_shown() -> None:
    assert _counts(choose_examples(_rows(50, 50), 12, 50.0)) == (6, 6)
    assert _counts(choose_examples(_rows(50, 50), 5, 50.0)) == (3, 2)


def test_one_kind_fills_up_for_the_other() -> None:
    assert _counts(choose_examples(_rows(50, 2), 12, 50.0)) == (10, 2)
    assert _counts(choose_examples(_rows(1, 50), 12, 50.0)) == (1, 11)
    assert _counts(choose_examples(_rows(0, 50), 12, 50.0)) == (0, 12)
    assert _counts(choose_examples(_rows(2, 1), 12, 50.0)) == (2, 1)
    assert choose_examples([], 12, 50.0) == []


def test_rights_and_wrongs_alternate() -> None:
    chosen = choose_examples(_rows(9, 9), 6, 50.0)
    assert [row["score"] for row in chosen] == [100.0, 0.0] * 3


def test_the_choice_depends_on_keys_alone() -> None:
    rows = _rows(40, 40)
    shuffled = random.Random(1).sample(rows, len(rows))
    other_answers = [row | {"processed_output": "zzz", "score": row["score"] / 2} for row in rows]
    expected = [row["key"] for row in choose_examples(rows, 12, 50.0)]
    assert [row["key"] for row in choose_examples(shuffled, 12, 50.0)] == expected
    assert [row["key"] for row in choose_examples(other_answers, 12, 50.0)] == expected
    first_in_file = [str(i) for i in range(6)]
    assert [key for key in expected if int(key) < 1_000] != first_in_file


def test_records_of_two_sources_with_equal_keys_are_told_apart(tmp_path: Path) -> None:
    records_dir = write_records(tmp_path)
    for task, source in (("sample_captions", "eval_captions"), ("sample_vqa", "eval_vqa")):
        found = find_records(records_dir, [prediction(task, i, "", 0.0) for i in (2, 5, 99)])
        assert {key: record.source for key, record in found.items()} == {"2": source, "5": source}


def test_a_missing_file_has_no_predictions(tmp_path: Path) -> None:
    assert list(read_predictions(tmp_path / "none.jsonl")) == []


def test_thumbnails_are_new_images_and_broken_ones_cost_nothing() -> None:
    data = encoded_image(40)
    uri = thumbnail_uri(data)
    assert uri.startswith("data:image/jpeg;base64,")
    assert uri == thumbnail_uri(data)
    assert thumbnail_uri(data[:30]) == ""
    assert thumbnail_uri(b"<svg onload=alert(1)>") == ""


def test_names_of_baselines_are_those_of_evaluation() -> None:
    assert inputs.BLIND_SUFFIX == baselines.BLIND_SUFFIX
    assert inputs.FREQUENT == baselines.FREQUENT
