from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kedro_rerun import artifacts
from kedro_rerun.artifacts import Workspace, activate, current, publish, verify
from kedro_rerun.context import BuildContext, building, workspace_for
from kedro_rerun.files import hash_file

A = "a" * 64
B = "b" * 64


def make(root: Path, fingerprint: str = A, text: str = "hello", **options) -> artifacts.Artifact:
    workspace = Workspace(root, fingerprint)
    (workspace.staging / "part").mkdir(exist_ok=True)
    (workspace.staging / "part" / "data.txt").write_text(text)
    options = {"counts": {"rows": 1}, "provenance": {"node": "n"}, **options}
    return publish(workspace, kind="table", schema_version=1, **options)


def test_publish_makes_the_version_current_and_describes_it(tmp_path):
    artifact = make(tmp_path)
    assert artifact == current(tmp_path)
    assert artifact.path == tmp_path / "aaaaaaaaaaaa"
    assert (tmp_path / "CURRENT").read_text() == "aaaaaaaaaaaa\n"
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["files"] == {
        "part/data.txt": {"size": 5, "hash": hash_file(artifact / "part/data.txt")}
    }
    assert manifest["fingerprint"] == A
    assert manifest["counts"] == {"rows": 1}
    assert not list((tmp_path / ".staging").iterdir())


def test_digest_sees_content_kind_and_counts_but_no_provenance_or_fingerprint(tmp_path):
    digest = make(tmp_path / "1").digest
    assert make(tmp_path / "2", B, provenance={"at": "noon"}).digest == digest
    assert make(tmp_path / "3", text="hellO").digest != digest
    assert make(tmp_path / "4", counts={"rows": 2}).digest != digest


def test_going_back_is_a_switch_of_the_pointer(tmp_path):
    first = make(tmp_path, A)
    second = make(tmp_path, B, "other")
    assert current(tmp_path) == second
    inode = os.stat(first.path).st_ino
    assert activate(tmp_path, A) == first
    assert current(tmp_path) == first
    assert os.stat(first.path).st_ino == inode
    with pytest.raises(ValueError, match="found no version cccccccccccc"):
        activate(tmp_path, "c" * 64)


def test_nothing_is_current_before_the_first_publish_or_after_a_loss(tmp_path):
    assert current(tmp_path / "never") is None
    artifact = make(tmp_path)
    (artifact / "manifest.json").write_text("{")
    assert current(tmp_path) is None


def test_rebuilding_the_same_fingerprint_replaces_the_version(tmp_path):
    make(tmp_path, A, "old")
    artifact = make(tmp_path, A, "new")
    assert (artifact / "part/data.txt").read_text() == "new"
    assert not list((tmp_path / ".staging").iterdir())


def test_a_failed_validation_publishes_nothing(tmp_path):
    first = make(tmp_path, A)

    def refuse(staging: Path) -> None:
        raise ValueError(f"found {len(list(staging.iterdir()))} entries")

    with pytest.raises(ValueError, match="found 1 entries"):
        make(tmp_path, B, validate=refuse)
    assert current(tmp_path) == first


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda staging: None, "found no file to publish"),
        (lambda staging: (staging / "manifest.json").write_text("{}"), "reserved"),
        (lambda staging: (staging / "link").symlink_to("/etc"), "found a link"),
    ],
)
def test_publish_refuses(tmp_path, spoil, message):
    workspace = Workspace(tmp_path, A)
    spoil(workspace.staging)
    with pytest.raises(ValueError, match=message):
        publish(workspace, kind="k", schema_version=1, counts={}, provenance={})


def write_mds(folder: Path) -> None:
    folder.mkdir()
    shard = folder / "shard.00000.mds.zstd"
    shard.write_bytes(b"shard" * 100)
    entry = {"basename": shard.name, "bytes": 500}
    entry["hashes"] = {"sha1": hash_file(shard, "sha1"), "xxh64": hash_file(shard, "xxh64")}
    raw = {"basename": "shard.00000.mds", "bytes": 9, "hashes": {"xxh64": "0"}}
    index = {"version": 2, "shards": [{"zip_data": entry, "raw_data": raw}]}
    (folder / "index.json").write_text(json.dumps(index))


def test_shards_with_an_index_are_pinned_by_the_index(tmp_path):
    workspace = Workspace(tmp_path, A)
    write_mds(workspace.staging / "train")
    artifact = publish(workspace, kind="shards", schema_version=1, counts={}, provenance={})
    entry = artifact.manifest["files"]["train/shard.00000.mds.zstd"]
    assert entry == {"size": 500, "index": "train/index.json"}
    assert verify(artifact, deep=True) == []
    (artifact / "train/shard.00000.mds.zstd").write_bytes(b"spoil" * 100)
    assert verify(artifact) == []
    assert verify(artifact, deep=True) == [
        "train/shard.00000.mds.zstd: its xxh64 differs from train/index.json."
    ]


def test_a_shard_that_does_not_fit_its_index_is_not_published(tmp_path):
    workspace = Workspace(tmp_path, A)
    write_mds(workspace.staging / "train")
    (workspace.staging / "train" / "shard.00000.mds.zstd").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, expected 500 bytes"):
        publish(workspace, kind="shards", schema_version=1, counts={}, provenance={})


@pytest.mark.parametrize(
    ("damage", "deep", "problem"),
    [
        (lambda a: (a / "part/data.txt").unlink(), False, "part/data.txt: missing."),
        (lambda a: (a / "x").write_text(""), False, "x: not in the manifest."),
        (
            lambda a: (a / "part/data.txt").write_text("hi"),
            False,
            "part/data.txt: found 2 bytes, expected 5.",
        ),
        (
            lambda a: (a / "part/data.txt").write_text("hallo"),
            True,
            "part/data.txt: its content differs from what was published.",
        ),
    ],
)
def test_verify_names_the_damage(tmp_path, damage, deep, problem):
    artifact = make(tmp_path)
    assert verify(artifact, deep=True) == []
    damage(artifact)
    assert verify(artifact, deep=deep) == [problem]


def test_verify_sees_an_edited_manifest(tmp_path):
    artifact = make(tmp_path)
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    edited = current(tmp_path)
    assert edited is not None
    assert verify(edited) == [
        "manifest.json: its digest does not match its content; it was edited."
    ]


def test_progress_stays_until_the_version_is_published(tmp_path):
    workspace = Workspace(tmp_path, A)
    (workspace.work / "checkpoint").write_text("step 7")
    assert Workspace(tmp_path, A).work == workspace.work
    make(tmp_path, B)
    assert (workspace.work / "checkpoint").exists()
    make(tmp_path, A)
    assert not (tmp_path / ".work" / "aaaaaaaaaaaa").exists()


def test_progress_survives_a_node_that_fails_after_publishing(tmp_path):
    def build() -> None:
        with artifacts.keep_work_until_done():
            (Workspace(tmp_path, A).work / "checkpoint").write_text("step 7")
            make(tmp_path, A)
            raise OSError("the report could not be written")

    with pytest.raises(OSError, match="report"):
        build()
    assert (tmp_path / ".work/aaaaaaaaaaaa/checkpoint").exists()
    with artifacts.keep_work_until_done():
        make(tmp_path, A)
    assert not (tmp_path / ".work/aaaaaaaaaaaa").exists()


def test_garbage_collection_keeps_the_current_and_the_named(tmp_path):
    for fingerprint in ("c" * 64, A, B):
        make(tmp_path, fingerprint, fingerprint)
    assert (Workspace(tmp_path, "d" * 64).work / "x").write_text("12") == 2
    planned = artifacts.collect_garbage(tmp_path, keep=[A], dry_run=True)
    assert [removed.path.name for removed in planned] == ["cccccccccccc", "dddddddddddd"]
    assert planned[1].size == 2
    assert len(artifacts.versions(tmp_path)) == 3
    assert artifacts.collect_garbage(tmp_path, keep=[A]) == planned
    assert [found.fingerprint for found in artifacts.versions(tmp_path)] == [A, B]


def test_sweep_leaves_living_processes_alone(tmp_path):
    alive = Workspace(tmp_path, A, pid=os.getppid())
    dead = Workspace(tmp_path, B, pid=2**22 + 7)
    (alive.staging / "x").write_text("")
    (dead.staging / "x").write_text("")
    (tmp_path / ".CURRENT.99.tmp").write_text("")
    assert artifacts.sweep(tmp_path) == [tmp_path / ".staging" / f"bbbbbbbbbbbb-{2**22 + 7}"]
    assert alive.staging.exists()
    assert not (tmp_path / ".CURRENT.99.tmp").exists()


def test_a_node_finds_its_workspace_by_the_name_of_its_output(tmp_path):
    context = BuildContext("train", A, {"ns.model": tmp_path / "m", "log": tmp_path / "l"})
    with pytest.raises(ValueError, match="Found no build context for the dataset 'model'"):
        workspace_for("model")
    with building(context):
        (workspace_for("model").staging / "x").write_text("left over")
        assert workspace_for("ns.model") == Workspace(tmp_path / "m", A)
        with pytest.raises(ValueError, match=r"output artifacts: ns\.model, log"):
            workspace_for("other")
    with building(context):
        assert not list(workspace_for("model").staging.iterdir())
