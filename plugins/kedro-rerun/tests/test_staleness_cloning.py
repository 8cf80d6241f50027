"""A data root that gets what another has made."""

from __future__ import annotations

from pathlib import Path

from kedro_rerun.artifacts import Workspace, current, publish, version
from kedro_rerun.cloning import clone_data_root


def make(root: Path, fingerprint: str, text: str) -> None:
    workspace = Workspace(root / "05" / "shards", fingerprint)
    (workspace.staging / "sub").mkdir(exist_ok=True)
    (workspace.staging / "sub" / "a.txt").write_text(text)
    publish(workspace, kind="shards", schema_version=1, counts={}, provenance={})


def test_a_clone_has_versions_reports_and_records_and_keeps_its_own(tmp_path):
    source, target = tmp_path / "source", tmp_path / "lanes" / "target"
    make(source, "a" * 12, "one")
    (source / ".staleness").mkdir(exist_ok=True)
    (source / ".staleness" / "pack.json").write_text("first")
    (source / "08").mkdir()
    (source / "08" / "report.json").write_text("report")
    clone_data_root(source, target)
    found = current(target / "05" / "shards")
    assert found is not None
    assert (found / "sub/a.txt").read_text() == "one"
    assert (found / "sub/a.txt").stat().st_nlink == 2
    (target / "06_own").mkdir()
    (target / "06_own" / "model").write_text("mine")

    make(source, "b" * 12, "two")
    (source / ".staleness" / "pack.json").write_text("second")
    clone_data_root(source, target)
    now = current(target / "05" / "shards")
    assert now is not None
    assert now.fingerprint == "b" * 12
    assert version(target / "05" / "shards", "a" * 12) is not None
    assert (target / ".staleness" / "pack.json").read_text() == "second"
    assert (target / "06_own" / "model").read_text() == "mine"
    # A report is a copy: what the clone writes later does not reach the source.
    (target / "08" / "report.json").write_text("changed")
    assert (source / "08" / "report.json").read_text() == "report"


def test_a_clone_that_was_cut_short_is_put_right(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    make(source, "a" * 12, "one")
    half = target / "05" / "shards" / ("a" * 12) / "sub"
    half.mkdir(parents=True)
    (half / "a.txt").write_text("ha")
    assert current(target / "05" / "shards") is None
    clone_data_root(source, target)
    found = current(target / "05" / "shards")
    assert found is not None
    assert (found / "sub/a.txt").read_text() == "one"
