"""Datasets of Kedro's own as inputs and outputs."""

from __future__ import annotations

import fsspec
import pytest
from kedro.io import CachedDataset, DataCatalog, Version
from kedro.pipeline import Pipeline, node
from kedro_datasets.json import JSONDataset
from kedro_datasets.partitions import PartitionedDataset
from kedro_datasets.text import TextDataset

from kedro_rerun.components import Settings
from kedro_rerun.kedro_graph import build_graph
from kedro_rerun.runner import RunOptions, StalenessRunner
from staleness_dummy import DummyProject, Recorder

SETTINGS = Settings(packages=(__name__,))


def same(x):
    return x


def load_all(parts):
    return {name: load() for name, load in parts.items()}


def run(data_root, nodes, datasets) -> list[str]:
    catalog = DataCatalog(datasets)
    recorder = Recorder()
    runner = StalenessRunner(lambda: RunOptions(data_root, SETTINGS))
    runner.run(Pipeline(nodes), catalog, DummyProject.hook_manager(recorder))
    return recorder.ran


def test_transcoded_datasets_connect_their_nodes(tmp_path):
    path = str(tmp_path / "data" / "table.json")
    raw = tmp_path / "raw.txt"
    raw.write_text("1")

    def once() -> list[str]:
        datasets = {
            "raw": TextDataset(filepath=str(raw)),
            "table@text": TextDataset(filepath=path),
            "table@json": JSONDataset(filepath=path),
            "out": JSONDataset(filepath=str(tmp_path / "data" / "out.json")),
        }
        nodes = [
            node(same, "raw", "table@text", name="first"),
            node(same, "table@json", "out", name="second"),
        ]
        return run(tmp_path / "data", nodes, datasets)

    assert once() == ["first", "second"]
    assert once() == []
    raw.write_text("2")
    assert once() == ["first", "second"]
    raw.write_text("2 ")
    assert once() == ["first", "second"]


def test_versioned_and_cached_datasets_are_read_where_they_are(tmp_path):
    raw = tmp_path / "raw.txt"
    raw.write_text("1")

    def once(save_version: str) -> list[str]:
        versioned = JSONDataset(
            filepath=str(tmp_path / "data" / "out.json"), version=Version(None, save_version)
        )
        datasets = {
            "raw": CachedDataset(TextDataset(filepath=str(raw))),
            "versioned": versioned,
            "out": JSONDataset(filepath=str(tmp_path / "data" / "last.json")),
        }
        nodes = [
            node(same, "raw", "versioned", name="first"),
            node(same, "versioned", "out", name="second"),
        ]
        return run(tmp_path / "data", nodes, datasets)

    assert once("2025-01-01T00.00.00.000Z") == ["first", "second"]
    assert once("2025-01-02T00.00.00.000Z") == []
    raw.write_text("2")
    assert once("2025-01-03T00.00.00.000Z") == ["first", "second"]
    assert once("2025-01-04T00.00.00.000Z") == []


def test_folders_of_partitions_count_as_a_whole(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "a.txt").write_text("1")

    def once() -> list[str]:
        datasets = {
            "parts": PartitionedDataset(path=str(parts), dataset="text.TextDataset"),
            "out": JSONDataset(filepath=str(tmp_path / "data" / "out.json")),
        }
        return run(tmp_path / "data", [node(load_all, "parts", "out", name="n")], datasets)

    assert once() == ["n"]
    assert once() == []
    (parts / "b.txt").write_text("2")
    assert once() == ["n"]
    (parts / "b.txt").write_text("3")
    assert once() == ["n"]


def test_remote_files_are_told_apart_by_their_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/raw.txt", b"1")

    def once() -> list[str]:
        datasets = {
            "raw": TextDataset(filepath="memory://bucket/raw.txt"),
            "out": JSONDataset(filepath=str(tmp_path / "data" / "out.json")),
        }
        return run(tmp_path / "data", [node(same, "raw", "out", name="n")], datasets)

    assert once() == ["n"]
    assert once() == []
    memory.pipe("/raw.txt", b"22")
    assert once() == ["n"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"save_args": {"indent": 2}}, {"save_args.indent": "2"}),
        ({"metadata": {"kedro-viz": 1}, "credentials": {}, "fs_args": {}}, {}),
    ],
)
def test_options_that_change_content_count_and_places_do_not(tmp_path, options, expected):
    dataset = JSONDataset(filepath=str(tmp_path / "x.json"), **options)
    graph = build_graph(Pipeline([node(same, "x", "y", name="n")]), DataCatalog({"x": dataset}))
    assert graph.datasets["x"].options == expected
