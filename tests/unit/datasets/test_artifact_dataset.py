from __future__ import annotations

import os

import pytest
from kedro.io import DatasetError
from kedro_rerun.context import BuildContext, building

from mm1_pipeline.datasets.artifact import ArtifactDataset, stage


def build(root, fingerprint: str, text: str, counts=None):
    with building(BuildContext("make", fingerprint, {"things": root})):
        staged = stage("things")
        (staged.directory / "data.txt").write_text(text)
        ArtifactDataset(path=str(root), kind="things").save(staged.described(counts=counts or {}))


def test_round_trip_gives_a_handle_to_the_published_version(tmp_path):
    build(tmp_path / "things", "a" * 64, "one", {"lines": 1})
    artifact = ArtifactDataset(path=str(tmp_path / "things"), kind="things").load()
    assert (artifact / "data.txt").read_text() == "one"
    assert artifact.counts == {"lines": 1}


def test_a_second_version_leaves_the_first_on_disk(tmp_path):
    build(tmp_path / "things", "a" * 64, "one")
    build(tmp_path / "things", "b" * 64, "two")
    dataset = ArtifactDataset(path=str(tmp_path / "things"), kind="things")
    assert (dataset.load() / "data.txt").read_text() == "two"
    assert (tmp_path / "things" / ("a" * 12) / "data.txt").read_text() == "one"


def test_loading_before_anything_is_published_says_what_to_run(tmp_path):
    dataset = ArtifactDataset(path=str(tmp_path / "things"), kind="things")
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="found no published things"):
        dataset.load()


def test_another_layout_is_refused(tmp_path):
    build(tmp_path / "things", "a" * 64, "one")
    dataset = ArtifactDataset(path=str(tmp_path / "things"), kind="things", schema_version=2)
    with pytest.raises(DatasetError, match="found layout 1, expected 2"):
        dataset.load()


def test_weights_that_rotted_are_seen_when_they_are_loaded_though_no_time_tells(tmp_path):
    dataset = ArtifactDataset(path=str(tmp_path / "things"), kind="things")
    with building(BuildContext("make", "a" * 64, {"things": tmp_path / "things"})):
        staged = stage("things")
        for name in ("a/model.safetensors", "config.json"):
            (staged.directory / name).parent.mkdir(exist_ok=True)
            (staged.directory / name).write_bytes(b"0123456789")
        dataset.save(staged)
    for name in ("a/model.safetensors", "config.json"):
        path = dataset.load() / name
        before = path.stat()
        path.write_bytes(b"0123056789")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DatasetError, match=f"found {name} damaged.*Remove this folder"):
            dataset.load()
        path.unlink()
        with pytest.raises(DatasetError, match=f"found {name} damaged"):
            dataset.load()
        path.write_bytes(b"0123456789")
    dataset.load()


def test_staging_outside_a_run_says_how_to_run():
    with pytest.raises(ValueError, match="kedro run"):
        stage("things")
