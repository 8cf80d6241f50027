"""Outputs that machines share: taken whole or not at all, put back where they were damaged."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from kedro.io import AbstractDataset
from kedro.pipeline import node

from kedro_rerun import maintenance
from kedro_rerun.files import hash_file, seal
from kedro_rerun.locks import OutputRecord, RunRecord
from kedro_rerun.shared_cache import CachedFile, CachedRun, SharedCache
from spaceflights import NODES, Kedro, Spaceflights
from staleness_dummy import NODES as DUMMY_NODES
from staleness_dummy import DummyProject


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path / 'shared'}"
        return
    MemoryFileSystem.store.clear()
    yield "memory://shared"
    MemoryFileSystem.store.clear()


@pytest.fixture
def project(tmp_path, url) -> DummyProject:
    """A project whose outputs are in the cache, on the first machine."""
    project = DummyProject(tmp_path / "first")
    assert sorted(project.run(cache=SharedCache(url))) == sorted(DUMMY_NODES)
    return project


def clone(project: DummyProject, folder: Path) -> DummyProject:
    """Another machine: the sources and the raw data, written later, and nothing else."""
    twin = project.copy_to(folder)
    shutil.rmtree(twin.data_root)
    for path in [*twin.source.rglob("*"), *twin.raw.rglob("*")]:
        if path.is_file():
            path.write_bytes(path.read_bytes())
    return twin


def contents(root: Path) -> dict[str, bytes]:
    """Every output by its relative name."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".staleness" not in path.parts
    }


def made(root: Path) -> dict[str, bytes]:
    """The same without manifests, which tell when and by whom a version was made."""
    return {name: text for name, text in contents(root).items() if "manifest.json" not in name}


def files_of(url: str) -> dict[str, bytes]:
    file_system, root = fsspec.url_to_fs(url)
    return {
        name.removeprefix(root).lstrip("/"): file_system.cat_file(name)
        for name in file_system.find(root)
    }


def overwrite(url: str, name: str, content: bytes) -> None:
    file_system, root = fsspec.url_to_fs(url)
    file_system.pipe_file(f"{root}/{name}", content)


def test_another_machine_runs_nothing(project, url, tmp_path):
    other = clone(project, tmp_path / "second")
    planner = other.planner(cache=SharedCache(url))
    assert {verdict.action for verdict in planner.plan().values()} == {"fetch"}
    assert not other.data_root.exists(), "to look changes nothing"
    assert other.run(cache=SharedCache(url)) == []
    assert contents(other.data_root) == contents(project.data_root)
    assert maintenance.verify(other.data_root, deep=True) == []
    assert other.run() == [], "what was taken is its own now"
    assert {row.state for row in other.status().values()} == {"fresh"}
    # What it makes with other parameters is there for the first.
    other.set("evaluate", shots=5)
    assert other.run(cache=SharedCache(url)) == ["evaluate", "report"]
    project.set("evaluate", shots=5)
    assert project.run(cache=SharedCache(url)) == []
    assert contents(other.data_root) == contents(project.data_root)


def test_without_a_cache_nothing_is_shared(project, url, tmp_path):
    other = clone(project, tmp_path / "second")
    assert sorted(other.run()) == sorted(DUMMY_NODES)


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "delete", "more", "manifest", "report", "current"]
)
def test_damaged_outputs_are_put_back(project, url, damage):
    whole = contents(project.data_root)
    version = (
        project.data_root / "shards" / (project.data_root / "shards/CURRENT").read_text().strip()
    )
    file = version / "shards.txt"
    report = project.data_root / "08_reporting" / "evaluation.json"
    {
        "flip": lambda: file.write_bytes(file.read_bytes()[:-1] + b"?"),
        "cut": lambda: file.write_bytes(file.read_bytes()[:-1]),
        "delete": lambda: file.unlink(),
        "more": lambda: (version / "more.txt").write_text("x"),
        "manifest": lambda: (version / "manifest.json").write_text("{}"),
        "report": lambda: report.write_text("{}"),
        "current": lambda: (version.parent / "CURRENT").unlink(),
    }[damage]()
    assert contents(project.data_root) != whole
    assert project.run(cache=SharedCache(url)) == []
    assert contents(project.data_root) == whole
    assert maintenance.verify(project.data_root, deep=True) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_what_rots_in_the_cache_is_not_taken_and_made_anew(project, url, damage, tmp_path, caplog):
    file_system, root = fsspec.url_to_fs(url)
    for name, content in files_of(url).items():
        if name.startswith("content/"):
            if damage == "gone":
                file_system.rm_file(f"{root}/{name}")
            else:
                broken = content[:-1] + bytes([content[-1] ^ 1]) * (damage == "flip")
                overwrite(url, name, broken)
    other = clone(project, tmp_path / "second")
    assert sorted(other.run(cache=SharedCache(url))) == sorted(DUMMY_NODES)
    assert ("is gone" if damage == "gone" else "is damaged") in caplog.text
    assert made(other.data_root) == made(project.data_root)
    third = clone(project, tmp_path / "third")
    assert third.run(cache=SharedCache(url)) == [], "whoever ran has put whole ones in their place"
    assert made(third.data_root) == made(project.data_root)


def test_records_that_are_not_as_they_were_written_are_not_believed(project, url, tmp_path):
    for name, content in files_of(url).items():
        if name.startswith("runs/"):
            overwrite(url, name, content.replace(b'"finished_at"', b'"finished_in"'))
    other = clone(project, tmp_path / "second")
    assert sorted(other.run(cache=SharedCache(url))) == sorted(DUMMY_NODES)


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "a\\..\\out", "a\0"])
def test_a_record_writes_nowhere_else(url, name):
    run = RunRecord("f" * 64, {}, {"x": OutputRecord("d")})
    files = {name: CachedFile("xxh3_128", "0" * 32, 1)}
    cached = CachedRun(run, {"x": files})
    assert SharedCache(url).store(CachedRun(run, {}), {})
    assert SharedCache(url).find(run.fingerprint) == CachedRun(run, {})
    (place,) = files_of(url)
    content = {"format": 1, **json.loads(json.dumps(cached, default=vars))}
    overwrite(url, place, json.dumps(seal(content)).encode())
    assert SharedCache(url).find(run.fingerprint) is None
    files["a/b.txt"] = files.pop(name)
    content = {"format": 1, **json.loads(json.dumps(cached, default=vars))}
    overwrite(url, place, json.dumps(seal(content)).encode())
    assert SharedCache(url).find(run.fingerprint) == cached, "the same, under a name inside"
    assert SharedCache(url).find("e" * 64) is None


def test_an_upload_that_is_cut_short_is_never_seen(tmp_path, url, monkeypatch, caplog):
    """Every write and every move may be the last: what has a name is whole, whatever happened."""
    project = DummyProject(tmp_path / "first")
    file_system, _ = fsspec.url_to_fs(url)
    kind, calls = type(file_system), 0
    for last in range(40):
        calls = 0

        def count(*arguments, of, last=last, **options):
            nonlocal calls
            calls += 1
            if calls > last:
                raise OSError("the line is cut")
            return of(*arguments, **options)

        with monkeypatch.context() as patch:
            for name in ("mv", "pipe_file", "_open"):
                of = getattr(kind, name)
                patch.setattr(kind, name, lambda *a, of=of, **o: count(*a, of=of, **o))
            if file_system.exists(url):
                file_system.rm(url, recursive=True)
            project.run(cache=SharedCache(url), force=True)
        for name, content in files_of(url).items():
            if name.startswith("content/"):
                algorithm, _, digest = name.rpartition("/")[2].partition("-")
                (tmp_path / "copy").write_bytes(content)
                assert hash_file(tmp_path / "copy", algorithm) == digest
        other = clone(project, tmp_path / f"other{last}")
        ran = other.run(cache=SharedCache(url))
        assert made(other.data_root) == made(project.data_root)
        if calls <= last:
            assert ran == []
            break
    assert calls > 20
    assert "this goes on without it" in caplog.text


def test_writers_at_once_need_no_lock(project, url, tmp_path):
    twins = [clone(project, tmp_path / f"twin{index}") for index in range(3)]
    for twin in twins:
        twin.run()
    file_system, _ = fsspec.url_to_fs(url)
    file_system.rm(url, recursive=True)
    start, failed = threading.Barrier(3), []
    shared = [twin.planner(cache=SharedCache(url)) for twin in twins]

    def push(planner) -> None:
        start.wait()
        failed.extend(name for name, is_there in maintenance.push(planner).items() if not is_there)

    threads = [threading.Thread(target=push, args=[planner]) for planner in shared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert not [name for name in files_of(url) if name.startswith("incoming/")]
    last = clone(project, tmp_path / "last")
    assert last.run(cache=SharedCache(url)) == []
    assert made(last.data_root) == made(project.data_root)


def test_a_cache_that_cannot_be_reached_stops_nothing(tmp_path, caplog):
    project = DummyProject(tmp_path / "first")
    cache = SharedCache("nosuchprotocol://user:hunter2@host/x")
    assert sorted(project.run(cache=cache)) == sorted(DUMMY_NODES)
    said = [record for record in caplog.records if "cannot be used" in record.getMessage()]
    assert len(said) == 1
    assert "hunter2" not in caplog.text


class Clock(AbstractDataset):
    """Of which nobody can tell whether it is what it was."""

    def __init__(self) -> None:
        """Kedro's own is an attribute, which nobody can call without an argument."""

    def load(self) -> int:
        return 1

    def save(self, data: int) -> None:
        raise NotImplementedError

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict:
        return {}


def test_what_cannot_be_told_is_not_shared(project, url, tmp_path):
    """A node that reads something opaque runs on every machine."""
    project.parameters_plain = {"number": 3}
    before = len(files_of(url))
    project.extra_datasets = {"clock": Clock()}
    project.extra_nodes = [node(abs, "clock", "evaluation2", name="tick")]
    assert project.run(cache=SharedCache(url)) == ["tick"]
    assert project.run(cache=SharedCache(url)) == ["tick"]
    assert len(files_of(url)) == before


@pytest.fixture(scope="module")
def kedro(tmp_path_factory) -> Iterator[Kedro]:
    kedro = Kedro(tmp_path_factory.mktemp("server"))
    yield kedro
    kedro.close()


def test_a_fresh_clone_of_spaceflights_runs_nothing(tmp_path, kedro):
    cache = f"--params=rerun_cache={tmp_path / 'shared'}"
    first, second = (Spaceflights(tmp_path / name, kedro) for name in ("first", "second"))
    first.add_three_lines()
    assert first.run(cache)[0] == NODES
    second.add_three_lines()
    code, output = second.call("rerun", "status", cache)
    assert code == 0
    assert output.count("its outputs will be taken from the cache") == len(NODES)
    ran, output = second.run(cache)
    assert ran == set()
    assert f"Ran 0 of {len(NODES)} nodes" in output
    for name in ("02_intermediate", "03_primary", "06_models", "08_reporting"):
        left = [
            sorted(
                path.read_bytes()
                for path in (twin.folder / "data" / name).rglob("*.*")
                if path.is_file()
            )
            for twin in (first, second)
        ]
        assert left[0] == left[1] != []
    assert second.run()[0] == set(), "without the cache too"
    (version,) = (second.folder / "data/06_models/regressor.json").iterdir()
    (version / "regressor.json").write_text("[1")
    assert second.run(cache)[0] == set()
    assert second.status() == {}
    second.edit("conf/base/parameters_data_science.yml", "0.25", "0.5")
    assert second.run(cache)[0] == {"split_data_node", "train_model_node", "evaluate_model_node"}
    first.edit("conf/base/parameters_data_science.yml", "0.25", "0.5")
    assert first.run(cache)[0] == set()


def test_what_was_made_before_there_was_a_cache_is_pushed(tmp_path, kedro):
    """As commands: a clone then runs nothing, and damage is put back."""
    cache = f"--params=rerun_cache={tmp_path / 'shared'}"
    first, second = (Spaceflights(tmp_path / name, kedro) for name in ("first", "second"))
    first.add_three_lines()
    assert first.run()[0] == NODES
    code, told = first.call("rerun", "push")
    assert code == 1
    assert "Found no cache: expected Settings(cache=...)" in told
    code, told = first.call("rerun", "push", cache)
    assert code == 0, told
    assert f"The cache holds the outputs of {len(NODES)} nodes." in told
    second.add_three_lines()
    assert second.run(cache)[0] == set()
    table = second.folder / "data/03_primary/model_input_table.parquet"
    whole = (first.folder / "data/03_primary/model_input_table.parquet").read_bytes()
    assert table.read_bytes() == whole
    table.write_bytes(whole[:-9])
    assert second.run(cache)[0] == set()
    assert table.read_bytes() == whole
    # What is stale here is not given.
    first.edit("conf/base/parameters_data_science.yml", "0.25", "0.5")
    code, told = first.call("rerun", "push", cache)
    assert code == 0, told
    assert f"The cache holds the outputs of {len(NODES) - 3} nodes." in told
