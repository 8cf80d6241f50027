"""Files of the state that are not as they were written: named, and never believed."""

from __future__ import annotations

import json
import os
import shutil
import types

import pytest

from kedro_rerun import hash_cache, maintenance
from kedro_rerun.artifacts import current
from kedro_rerun.hash_cache import HashCache
from kedro_rerun.locks import LockStore
from staleness_dummy import DummyProject

NOT_OURS = [b"{}", b"[]", b"null", b"3", b'"x"', b"", b"\xff", b"{" * 9, b"[" * 100_000]


def spoiled(text: bytes) -> list[bytes]:
    """What is no JSON of ours, and ours with values of another type or another value."""
    content = json.loads(text)
    others = [{**content, key: value} for key in content for value in (None, 3, [], {}, "x")]
    changed = [json.dumps(other).encode() for other in others if other != content]
    flipped = [text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :] for at in range(0, len(text), 37)]
    return [*NOT_OURS, *changed, *flipped]


def state(project: DummyProject, name: str):
    return project.data_root / ".staleness" / name


@pytest.fixture
def built(tmp_path) -> DummyProject:
    project = DummyProject(tmp_path)
    project.run()
    return project


def test_a_damaged_record_is_named_and_its_node_runs_again(built):
    path = state(built, "shard.json")
    whole = path.read_bytes()
    for content in spoiled(whole):
        if unchanged(content, whole):
            continue
        path.write_bytes(content)
        assert LockStore(built.data_root).read("shard").damaged == str(path)
        assert [problem.path for problem in maintenance.verify(built.data_root)] == [str(path)]
    row = built.status()["shard"]
    assert (row.state, row.reasons) == ("stale", (f"its record is damaged: {path}",))
    with pytest.raises(ValueError, match=r"shard\.json: found a damaged record"):
        maintenance.collect_garbage(built.data_root)
    assert "shard" in built.run()
    assert maintenance.verify(built.data_root) == []


def unchanged(content: bytes, whole: bytes) -> bool:
    """Whether a flipped bit only changed blanks between values."""
    try:
        return json.loads(content) == json.loads(whole)
    except (ValueError, RecursionError):
        return False


def test_a_record_of_before_there_were_checksums_is_read(built):
    path = state(built, "shard.json")
    content = json.loads(path.read_bytes())
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert built.status()["shard"].state == "fresh"
    assert maintenance.verify(built.data_root) == []


@pytest.mark.parametrize("name", ["cache/hashes.json", "cache/code.json", "cache/closures.json"])
def test_a_damaged_cache_is_not_believed(built, name):
    built.status()
    path = state(built, name)
    whole = path.read_bytes()
    for content in [*NOT_OURS, whole[:-9], whole.replace(b"1", b"2")]:
        path.write_bytes(content)
        assert {row.state for row in built.status().values()} == {"fresh"}


def test_verify_names_a_pointer_that_is_gone_or_is_none(built):
    root = built.data_root / "shards"
    pointer = root / "CURRENT"
    name = pointer.read_text()
    for content in (None, "", "{}", "../x", name * 2, "\0"):
        pointer.unlink(missing_ok=True)
        if content is not None:
            pointer.write_text(content)
        (problem,) = maintenance.verify(built.data_root)
        assert problem.path == str(pointer)
        assert "missing or damaged" in problem.text
    pointer.unlink()
    shutil.rmtree(root / ".staging")  # Nothing else tells that this is the root of an artifact.
    assert [found.path for found in maintenance.verify(built.data_root)] == [str(pointer)]
    built.run()
    assert maintenance.verify(built.data_root) == []


def test_verify_sees_every_byte_of_a_manifest(built):
    path = current(built.data_root / "shards").path / "manifest.json"
    whole = path.read_bytes()
    for content in spoiled(whole):
        if unchanged(content, whole):
            continue
        path.write_bytes(content)
        problems = maintenance.verify(built.data_root)
        assert str(path.parent) in {problem.path for problem in problems}, content
    for content in NOT_OURS:
        path.write_bytes(content)
        assert built.status()["shard"].reasons == ("output:shards: its manifest is damaged",)
    assert "shard" in built.run()
    assert maintenance.verify(built.data_root) == []


# The clock of a file system, in whole seconds


def test_an_edit_within_the_tick_of_a_coarse_clock_is_seen(tmp_path, monkeypatch):
    """File systems with whole seconds (ext3, HFS+, many servers) show no trace of it."""
    path, cache, written = tmp_path / "raw", HashCache(), 1_700_000_000 * 10**9

    def at(seconds: float) -> None:
        clock = types.SimpleNamespace(time_ns=lambda: written + int(seconds * 1e9))
        monkeypatch.setattr(hash_cache, "time", clock)

    monkeypatch.setattr(hash_cache, "signature", lambda path: [2, written, written, 7])
    for seconds in (0.05, 0.5, 0.99, 1.9):
        at(seconds)
        path.write_text("aa")
        before = cache.hash(path)
        path.write_text("bb")
        assert cache.hash(path) != before
    at(3)
    path.write_text("cc")
    late = HashCache(tmp_path / "hashes.json")
    now = types.SimpleNamespace(st_ctime_ns=written)
    disk = types.SimpleNamespace(stat=lambda _: now, path=os.path, getpid=os.getpid)
    monkeypatch.setattr(hash_cache, "os", disk)
    before = late.hash(path)  # The disk's clock is three seconds late: it was just written.
    path.write_text("dd")
    assert late.hash(path) != before
    assert [found.name for found in tmp_path.iterdir()] == ["raw"]
    cache.hash(path)
    monkeypatch.setattr(hash_cache, "hash_file", None)
    cache.hash(path)  # Settled, so it is not read again.
