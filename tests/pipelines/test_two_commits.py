"""What the comparison of two commits sees, and what it passes over."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "campaigns" / "two_commits.py"


@pytest.fixture(scope="module")
def two_commits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_commits", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root: Path, fingerprint: str, seconds: float) -> Path:
    """What a run leaves, in small; only its identity and its clock differ."""
    version = root / "05_model_input" / "shards" / fingerprint
    version.mkdir(parents=True)
    (version.parent / "CURRENT").write_text(f"{fingerprint}\n")
    (version / "shard.00000.mds").write_bytes(bytes(range(200)))
    (version / "manifest.json").write_text(json.dumps({"fingerprint": fingerprint}))
    reports = root / "08_reporting"
    reports.mkdir()
    rows = [{"step": n, "loss": 5.0 - n / 7, "timing": {"seconds": seconds}} for n in range(10)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (reports / "training_pretrain.jsonl").write_text(lines)
    report = {"kept": 40, "seconds": seconds, "sources": [{"name": "a", "rejected": {"x": 1}}]}
    (reports / "ingest_report.json").write_text(json.dumps(report))
    return root


def damage(root: Path, name: str, before: bytes, after: bytes) -> None:
    (path,) = root.rglob(name)
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))


def test_runs_that_differ_by_clock_and_identity_alone_are_equal(two_commits, tmp_path):
    runs = [write(tmp_path / name, name * 8, ord(name)) for name in "ab"]
    found = two_commits.compare(*map(two_commits.results, runs))
    assert found == {
        "equal": True, "losses": 1, "packed": 1, "reports": 1,
        "num_differences": 0, "differences": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        (
            "training_pretrain.jsonl",
            b"4.857142857142857,",
            b"4.857142857142858,",
            "losses: training_pretrain.jsonl[1].loss: 4.857142857142857 != 4.857142857142858",
        ),
        ("shard.00000.mds", b"\x07", b"\x08", "packed: shards/shard.00000.mds: other bytes"),
        (
            "ingest_report.json",
            b'{"x": 1}',
            b'{"x": true}',
            "reports: ingest_report.json[0].sources[0].rejected.x: 1 != True",
        ),
        (
            "ingest_report.json",
            b'"kept"',
            b'"held"',
            "reports: ingest_report.json[0]: {'kept': 40",
        ),
    ],
    ids=["loss", "byte", "value", "name"],
)
def test_a_planted_difference_is_found(two_commits, tmp_path, name, before, after, told):
    runs = [write(tmp_path / letter, letter * 8, 1.0) for letter in "ab"]
    damage(runs[1], name, before, after)
    found = two_commits.compare(*map(two_commits.results, runs))
    assert (found["equal"], found["num_differences"]) == (False, 1)
    assert found["differences"][0].startswith(told)


def test_what_only_one_run_has_is_a_difference_and_nothing_is_not_equal(two_commits, tmp_path):
    runs = [write(tmp_path / letter, letter * 8, 1.0) for letter in "ab"]
    (runs[0] / "08_reporting" / "ingest_report.json").unlink()
    found = two_commits.compare(*map(two_commits.results, runs))
    assert found["differences"] == ["reports: ingest_report.json: only in the second"]
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a" / "08_reporting").mkdir(parents=True)
    assert not two_commits.compare({}, two_commits.results(tmp_path / "a"))["equal"]
