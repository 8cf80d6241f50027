"""Two runs item by item: what flipped, what that is worth, and how it is shown."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from report_samples import HOSTILE, encoded_image
from rich.console import Console

from mm1_pipeline.cli import mm1
from mm1_pipeline.comparing import ComparisonError, compare_runs, data, page
from mm1_pipeline.evaluation.comparison import compare_predictions, mcnemar_exact
from mm1_pipeline.reporting.comparison import comparison_table


def row(key: str, score: float, answer: str = "red", **changes: Any) -> dict[str, Any]:
    image = hashlib.sha256(encoded_image(int(key))).hexdigest()
    return {
        "id": f"vqa/0shot/{key}",
        "source": None,
        "key": key,
        "prompt_sha256": "a" * 64,
        "shots": [],
        "raw_output": answer,
        "processed_output": answer,
        "references": ["red"] * 10,
        "score": score,
        "failure": None,
        "question": f"what is {key}?",
        "image": image,
    } | changes


def write(folder: Path, rows: list[dict[str, Any]], name: str = "vqa_0shot") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(found) + "\n" for found in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


SECOND = [100, 100, 0, 30, 100, 60, 0, 100]
FIRST = [100, 0, 100, 0, 100, 0, 0, 0]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Item 2 is lost; 1, 5 and 7 are gained; 0 to 30 is no flip."""
    for name, scores in (("a", FIRST), ("b", SECOND)):
        write(tmp_path / name / "pretrain", [row(str(n), s) for n, s in enumerate(scores)])
        images = tmp_path / name / "images"
        images.mkdir()
        data = encoded_image(2)
        (images / f"{hashlib.sha256(data).hexdigest()}.jpg").write_bytes(data)
    return tmp_path / "a", tmp_path / "b"


def test_flips_and_differences_are_those_counted_by_hand(runs):
    (found,) = compare_predictions(runs[0] / "pretrain", runs[1] / "pretrain")
    assert (found.task, found.shots, found.count) == ("vqa", 0, 8)
    assert (found.first, found.second) == (37.5, 61.25)
    assert found.difference.mean == pytest.approx(23.75)
    assert found.difference.low < 23.75 < found.difference.high
    assert [(flip.key, flip.is_gain) for flip in found.flips] == [
        ("2", False),
        ("1", True),
        ("5", True),
        ("7", True),
    ]
    assert (found.num_gained, found.num_lost) == (3, 1)
    # Four flips, one of them the other way: 2 x (1 + 4) / 16.
    assert found.p_value == pytest.approx(0.625)
    assert (found.only_first, found.only_second, found.same_prompts) == (0, 0, 8)


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 2 / 32), (0, 10, 2 / 1024), (3, 1, 10 / 16)],
)
def test_mcnemars_exact_test(gained, lost, expected):
    assert mcnemar_exact(gained, lost) == pytest.approx(expected)
    assert mcnemar_exact(lost, gained) == mcnemar_exact(gained, lost)


def test_mcnemar_is_a_binomial_test():
    from scipy.stats import binomtest

    for gained in range(12):
        for lost in range(12):
            if gained + lost:
                expected = binomtest(gained, gained + lost).pvalue
                assert math.isclose(mcnemar_exact(gained, lost), expected, rel_tol=1e-9)


def test_items_of_one_run_only_and_other_prompts_are_told(tmp_path):
    first = write(tmp_path / "a", [row(str(n), 100) for n in range(4)])
    second = write(tmp_path / "b", [row(str(n), 100, prompt_sha256="b" * 64) for n in range(2, 7)])
    (found,) = compare_predictions(first, second)
    assert (found.count, found.only_first, found.only_second) == (2, 2, 3)
    assert found.same_prompts == 0


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = write(tmp_path / "a", [row("0", 1), row("1", 1)])
    with pytest.raises(ValueError, match=r"Found vqa \(0 shots\) in .* and no predictions in"):
        compare_predictions(first, tmp_path)
    other = write(tmp_path / "b", [row("7", 1), row("8", 1)])
    with pytest.raises(ValueError, match="found 0 items that both runs have"):
        compare_predictions(first, other)
    (other / "vqa_0shot.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"Found no prediction in .*vqa_0shot.jsonl, line 1"):
        compare_predictions(first, other)


def test_models_are_found_or_asked_for(runs, tmp_path):
    a, b = map(str, runs)
    assert compare_runs(a, b, None, None, None).names == ("a pretrain", "b pretrain")
    write(runs[0] / "sft", [row(str(n), 100) for n in range(8)])
    assert compare_runs(a, b, None, None, None).names == ("a pretrain", "b pretrain")
    assert compare_runs(a, a, "pretrain", "sft", None).names == ("pretrain", "sft")
    with pytest.raises(ComparisonError, match="name one with --model"):
        compare_runs(a, a, None, None, None)
    with pytest.raises(ComparisonError, match=r"Found no model 'sft' in .*b; it has pretrain"):
        compare_runs(a, b, "sft", None, None)
    with pytest.raises(ComparisonError, match="Found no folder nowhere"):
        compare_runs(a, "nowhere", None, None, None)


def test_versions_of_an_environment_are_found_by_fingerprint(runs, tmp_path):
    from kedro_rerun.artifacts import Workspace, publish

    root = tmp_path / "data" / "07_model_output" / "predictions"
    for place, run in enumerate(runs):
        workspace = Workspace(root, f"{place}" * 64)
        write(workspace.staging / "pretrain", [json.loads(x) for x in _lines(run)])
        publish(workspace, kind="predictions", schema_version=1, counts={}, provenance={})
    found = compare_runs("00", "CURRENT", None, None, tmp_path / "data")
    assert [task.num_gained for task in found.tasks] == [3]
    with pytest.raises(ComparisonError, match=r"Found 0 versions of predictions for '2'"):
        compare_runs("2", "CURRENT", None, None, tmp_path / "data")


def test_runs_are_found_by_the_numbers_that_runs_tells(runs, tmp_path):
    from kedro_rerun.history import History, PastRun

    data = tmp_path / "data"
    for number, run in enumerate(runs, start=3):
        version = f"07_model_output/predictions/v{number}"
        write(data / version / "pretrain", [json.loads(line) for line in _lines(run)])
        versions = {"predictions": version, "records": "03_primary/records/x"}
        History(data).write(PastRun(number, "2026-11-30T12:00:00+00:00", versions=versions))
    History(data).write(PastRun(5, "2026-11-30T12:00:00+00:00", versions={"records": "r/x"}))
    found = compare_runs("3", "4", None, None, data)
    assert [task.num_gained for task in found.tasks] == [3]
    assert found.names == ("3 pretrain", "4 pretrain")
    assert compare_runs(str(runs[0]), "4", None, None, data).tasks == found.tasks
    with pytest.raises(ComparisonError, match="Found no predictions of run 5; it evaluated no"):
        compare_runs("5", "4", None, None, data)
    shutil.rmtree(data / "07_model_output/predictions/v3")
    with pytest.raises(ComparisonError, match=r"predictions of run 3 removed \(.*v3\)"):
        compare_runs("3", "4", None, None, data)


def test_the_table_fits_80_columns(runs):
    found = compare_runs(str(runs[0]), str(runs[1]), None, None, None)
    long = [replace(task, task="a_benchmark_with_a_long_name", shots=n) for task in found.tasks
            for n in (0, 16)]  # fmt: skip
    console = Console(width=80)
    with console.capture() as capture:
        console.print(comparison_table(long, ("A", "B")))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in capture.get()
    assert "16" in lines[-3].split() or "16" in lines[-4].split()


def _lines(run: Path) -> list[str]:
    return (run / "pretrain" / "vqa_0shot.jsonl").read_text().splitlines()


def test_the_page_shows_flips_with_images_and_loads_nothing(runs):
    found = compare_runs(str(runs[0]), str(runs[1]), None, None, None)
    content = page(found)
    assert "3 gained and 1 lost of 8 items" in content
    assert "what is 2?" in content
    assert "what is 3?" not in content
    # The image of item 2 alone has a copy.
    assert content.count("data:image/jpeg;base64,") == 1
    assert "<script" not in content
    assert page(found) == content
    assert data(found)["tasks"][0]["flips"][0]["key"] == "2"


def test_hostile_predictions_do_nothing(runs):
    rows = [row(str(n), s, HOSTILE, image="../../etc/passwd") for n, s in enumerate(SECOND)]
    rows[1] |= {"question": HOSTILE, "references": [HOSTILE], "options": [HOSTILE]}
    write(runs[1] / "pretrain", rows)
    content = page(compare_runs(str(runs[0]), str(runs[1]), None, None, None))
    assert "<script>" not in content
    content.encode("utf-8")


def test_the_command_prints_a_table_json_and_writes_a_page(runs, tmp_path):
    a, b = map(str, runs)
    result = CliRunner().invoke(mm1, ["compare", a, b, "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    for part in ("vqa", "37.5", "61.2", "+23.8", "+3 −1", "0.625"):
        assert part in result.output
    assert "What flipped" in (tmp_path / "page.html").read_text()
    result = CliRunner().invoke(mm1, ["compare", a, b, "--json"])
    assert json.loads(result.output)["tasks"][0]["gained"] == 3
    result = CliRunner().invoke(mm1, ["compare", a, b, "--model", "sft"])
    assert result.exit_code == 1
    assert "it has pretrain" in result.output
