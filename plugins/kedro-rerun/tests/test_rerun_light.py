"""What makes a command light that finds nothing to do: it may leave work out, and no change."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import pytest
from kedro.framework.context import KedroContext
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.memory_dataset import _infer_copy_mode

from kedro_rerun import components, hash_cache
from kedro_rerun.catalog import LeanCatalog, is_copied_deeply, make_lean
from kedro_rerun.preflight import Mistake, PreflightError
from kedro_rerun.shapes import ShapeError, restore
from staleness_dummy import DummyProject

# Parameters in the catalogue


class DataFrame:
    """Of a library that Kedro knows by this name alone, such as Spark."""


def parameters():
    import numpy as np
    import pandas as pd

    class Frame(pd.DataFrame):
        pass

    return [
        None, True, 1, 2.5, "a", [1], {"a": {"b": [1]}}, (1,), {1}, Inner("a"),
        np.zeros(2), np.float64(1), np.ma.zeros(2), pd.DataFrame({"a": [1]}), pd.Series([1]),
        Frame(), DataFrame(),
    ]  # fmt: skip


def copy_mode(catalog, name):
    dataset = catalog[name]
    assert isinstance(dataset, MemoryDataset)
    return dataset._copy_mode


def test_parameters_are_copied_as_kedro_copies_them():
    for value in parameters():
        catalog, kedros = LeanCatalog(), DataCatalog()
        catalog["params:a"] = value
        kedros["params:a"] = value
        mode = copy_mode(catalog, "params:a") or _infer_copy_mode(value)
        assert mode == _infer_copy_mode(value), value
        assert (catalog.load("params:a") is value) == (kedros.load("params:a") is value), value
    assert sum(map(is_copied_deeply, parameters())) == 10


def test_a_parameter_cannot_be_changed_by_who_gets_it():
    catalog = LeanCatalog()
    catalog["params:a"] = given = {"b": [1]}
    catalog.load("params:a")["b"].append(2)
    given["b"].append(3)
    assert catalog.load("params:a") == {"b": [1]}


def test_datasets_and_other_values_are_kedros():
    dataset = MemoryDataset(1)
    catalog = LeanCatalog({"own": dataset})
    catalog["params:a"] = catalog["b"] = dataset
    catalog["c"] = [1]
    assert catalog["params:a"] is catalog["b"] is catalog["own"] is dataset
    assert copy_mode(catalog, "c") is None


def test_a_catalogue_that_a_project_names_stays():
    class Own(DataCatalog):
        pass

    made = []

    class Context(KedroContext):
        def __init__(self):
            pass

        def _get_catalog(
            self, catalog_class=DataCatalog, save_version=None, load_versions=None
        ) -> Any:
            made.append((catalog_class, save_version))

    context = Context()
    make_lean(context)
    _ = context.catalog
    context._get_catalog(catalog_class=DataCatalog, save_version="1")
    context._get_catalog(catalog_class=Own)
    assert made == [(LeanCatalog, None), (LeanCatalog, "1"), (Own, None)]


# Records


@dataclasses.dataclass(frozen=True)
class Inner:
    text: str
    number: float | None = None


class Entry(TypedDict):
    size: int
    hash: NotRequired[str]


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Mapping[str, Inner]
    several: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (0, "")
    anything: Any = None
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)


def test_records_come_back_as_they_were():
    outer = Outer(
        {"a": Inner("b", 1)},
        (Inner("c"), Inner("d", 0.5)),
        (3, "e"),
        {"f": [None]},
        {"g": {"size": 1}},
    )
    content = {**dataclasses.asdict(outer), "pair": [3, "e"]}
    content["several"] = list(content["several"])
    assert restore(Outer, content) == outer
    assert restore(Outer, {"inner": {}}) == Outer({})


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "inner",
        {},
        {"inner": None},
        {"inner": []},
        {"inner": {"a": "b"}},
        {"inner": {}, "more": 1},
        {"inner": {"a": {}}},
        {"inner": {"a": {"text": 1}}},
        {"inner": {"a": {"text": "b", "number": True}}},
        {"inner": {"a": {"text": "b", "number": "1"}}},
        {"inner": {}, "several": {}},
        {"inner": {}, "pair": [1]},
        {"inner": {}, "pair": [True, "a"]},
        {"inner": {}, "pair": [1, "a", "b"]},
        {"inner": {}, "entries": {"a": {}}},
        {"inner": {}, "entries": {"a": {"size": 1, "hash": None}}},
        {"inner": {}, "entries": {"a": {"size": 1, "mode": 2}}},
        {"inner": {}, "entries": {"a": {"size": 1.0}}},
    ],
)
def test_records_of_another_shape_are_refused(content):
    with pytest.raises(ShapeError):
        restore(Outer, content)


# Code that is known


class Followed:
    """Counts nodes whose code is followed, rather than known."""

    def __init__(self, project, monkeypatch):
        self.number = 0
        self.project = project
        follow = components.ComponentReader._close

        def counted(*given):
            self.number += 1
            return follow(*given)

        monkeypatch.setattr(components.ComponentReader, "_close", counted)

    def status(self):
        """Whether any was followed, and which nodes are stale for their own code."""
        self.number = 0
        rows = self.project.status()
        own = {name for name, row in rows.items() if any("code:" in text for text in row.reasons)}
        return self.number > 0, own


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A project that ran, whose files count as written long ago."""
    monkeypatch.setattr(hash_cache, "_TICK_NS", 0)
    project = DummyProject(tmp_path)
    project.write("tables/words.txt", "a")
    project.write("unused.py", "A = 1\n")
    project.run()
    let_the_clock_tick()
    found = Followed(project, monkeypatch)
    found.status()
    assert found.status() == (False, set())
    return found


def let_the_clock_tick():
    time.sleep(0.02)


def keep_times(path, action):
    before = path.stat()
    action()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_edit_of_the_same_length_and_time_is_seen(followed):
    path = followed.project.source / "common.py"
    keep_times(path, lambda: followed.project.edit("common.py", "return", "yield "))
    is_followed, stale = followed.status()
    assert is_followed
    assert stale
    keep_times(path, lambda: followed.project.edit("common.py", "yield ", "return"))
    assert followed.status() == (True, set())
    let_the_clock_tick()
    followed.status()
    assert followed.status() == (False, set())


@pytest.mark.parametrize("change", ["table", "new table", "new module", "gone", "link"])
def test_whatever_changes_in_a_package_is_looked_at(followed, change, tmp_path):
    source = followed.project.source
    table = source / "tables/words.txt"
    if change == "table":
        keep_times(table, lambda: table.write_text("b"))
    elif change == "new table":
        (source / "tables/more.txt").touch()
    elif change == "new module":
        (source / "training").mkdir()
        shutil.copy(source / "training.py", source / "training/__init__.py")
    elif change == "gone":
        (source / "unused.py").unlink()
    else:
        (tmp_path / "elsewhere.txt").write_text("c")
        table.unlink()
        table.symlink_to(tmp_path / "elsewhere.txt")
    assert followed.status()[0]
    if change == "link":
        let_the_clock_tick()
        followed.status()
        assert not followed.status()[0]
        (tmp_path / "elsewhere.txt").write_text("d")
        assert followed.status()[0]


def test_other_rules_are_other_code(followed, monkeypatch):
    monkeypatch.setattr(
        DummyProject,
        "settings",
        components.Settings(("dummy",), ("dummy.common",), followed.project.libraries),
    )
    assert followed.status()[0]


def test_what_was_written_just_now_is_not_known(tmp_path, monkeypatch):
    project = DummyProject(tmp_path)
    project.run()
    monkeypatch.setattr(hash_cache, "_TICK_NS", 10**12)
    project.edit("common.py", "return", "return ")
    found = Followed(project, monkeypatch)
    assert [found.status()[0] for _ in range(2)] == [True, True]


def test_ways_are_told_of_known_code(followed):
    project = followed.project
    project.edit("training.py", "model.loss(step)", "model.loss(step) + 1")
    first = project.status()["train"].reasons
    let_the_clock_tick()
    project.status()
    followed.number = 0
    assert project.status()["train"].reasons == first
    assert any("reached by" in text for text in first)


def test_mistakes_are_looked_for_where_something_runs(tmp_path, monkeypatch):
    project, asked = DummyProject(tmp_path), []

    def look(graph):
        asked.append(len(graph.nodes))
        return [Mistake("mend it", frozenset({"summary"}))]

    settings = dataclasses.replace(project.settings, preflight=look)
    project.run()
    monkeypatch.setattr(DummyProject, "settings", settings)
    assert project.run() == []
    assert asked == []
    project.set("evaluate", shots=5)
    assert project.run() == ["evaluate", "report"]
    assert asked == [6]
    project.edit("common.py", "return text.upper()", "return text.upper() + '!'")
    with pytest.raises(PreflightError, match="mend it"):
        project.run()
