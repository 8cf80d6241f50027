"""Finer than a node's parameters and a version: what a node reads, and what it takes again."""

from __future__ import annotations

import pytest

from kedro_rerun import artifacts
from kedro_rerun.artifacts import Workspace
from kedro_rerun.errors import StalenessError
from kedro_rerun.maintenance import collect_garbage
from kedro_rerun.narrowing import narrowed, parts_by_dataset
from staleness_dummy import DummyProject

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def project(tmp_path) -> DummyProject:
    """Its node `report` gets the training's parameters too, and reads the number of steps."""
    project = DummyProject(tmp_path)
    project.edit(
        "parameters.py",
        "def total(self):",
        "def length(self):\n        return {'steps': self.steps}\n\n    def total(self):",
    )
    project.edit("nodes.py", '"""Nodes."""', "from kedro_rerun.narrowing import narrowed")
    project.edit(
        "nodes.py",
        "def report(evaluation, training_log):",
        "@narrowed(config=Train.length)\ndef report(config, evaluation, training_log):",
    )
    project.edit(
        "nodes.py",
        "return render(evaluation, training_log)",
        'return render(evaluation, training_log) + str(config["steps"])',
    )
    project.edit(
        "pipeline.py",
        'nodes.report, ["evaluation"',
        'nodes.report, ["params:train", "evaluation"',
    )
    project.run()
    return project


def test_a_parameter_that_a_node_does_not_read_makes_it_not_stale(project) -> None:
    before = {name: row.state for name, row in project.status().items()}
    assert set(before.values()) == {"fresh"}
    project.set("train", optimizer={"lr": 2e-5})
    reasons = project.status()["report"].reasons
    assert not any(reason.startswith("params:") for reason in reasons)
    project.set("train", optimizer={"lr": 1e-5}, steps=3)
    assert "params:train.steps: 2 -> 3" in project.status()["report"].reasons


def test_what_makes_the_part_counts_as_code(project) -> None:
    project.edit("parameters.py", "{'steps': self.steps}", "{'steps': self.steps + 1}")
    rows = project.status()
    assert rows["report"].state == "stale"
    assert any("code:" in reason for reason in rows["report"].reasons)


def test_a_function_gets_the_part_however_it_is_called() -> None:
    @narrowed(config=lambda config: config["a"], other=lambda other: -other)
    def node(first, config, other=1):
        return first, config, other

    assert node(0, {"a": 1}, 2) == (0, 1, -2)
    assert node(0, config={"a": 1}, other=3) == (0, 1, -3)
    for inputs in (["x", "params:c", "o"], {"first": "x", "other": "o", "config": "params:c"}):
        parts = parts_by_dataset(node, inputs)
        assert parts["params:c"]({"a": 5}) == 5
        assert parts["o"](1) == -1
    assert parts_by_dataset(len, "x") == {}


def test_an_argument_that_is_not_there_is_named() -> None:
    with pytest.raises(StalenessError, match=r"found no argument confg to narrow.*one of config"):

        @narrowed(confg=str)
        def node(config): ...


def write(root, fingerprint: str, making: str, *parts: str) -> Workspace:
    workspace = Workspace(root, fingerprint, making=making)
    (workspace.staging / "x").write_text(fingerprint)
    for name in parts:
        folder = workspace.part(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "y").write_text(name)
    artifacts.publish(workspace, kind="k", schema_version=1, counts={}, provenance={})
    return workspace


def names_of_parts(root) -> set[str]:
    return {path.parent.relative_to(root / ".parts").as_posix() for path in root.rglob("y")}


def test_parts_are_found_by_the_same_code_only(tmp_path) -> None:
    first = write(tmp_path, A, "1" * 64, "s/one")
    assert Workspace(tmp_path, B, making="1" * 64).part("s/one") == first.part("s/one")
    assert not Workspace(tmp_path, B, making="2" * 64).part("s/one").exists()
    assert not Workspace(tmp_path, B).part("s/one").exists()


def test_parts_go_with_the_last_version_that_asked_for_them(tmp_path) -> None:
    write(tmp_path, A, "1" * 64, "s/one", "s/two")
    write(tmp_path, B, "1" * 64, "s/two", "t")
    write(tmp_path, C, "2" * 64, "s/one")
    assert len(names_of_parts(tmp_path)) == 4
    planned = artifacts.collect_garbage(tmp_path, keep=[A], dry_run=True)
    assert {removed.path.name for removed in planned} == {"b" * 12, "t"}
    artifacts.collect_garbage(tmp_path, keep=[A])
    one, two = "1" * 12, "2" * 12
    assert names_of_parts(tmp_path) == {f"{one}/s/one", f"{one}/s/two", f"{two}/s/one"}
    artifacts.collect_garbage(tmp_path, keep=[])
    assert names_of_parts(tmp_path) == {f"{two}/s/one"}


def test_parts_stay_while_a_killed_run_may_go_on(tmp_path) -> None:
    write(tmp_path, A, "1" * 64, "kept")
    killed = Workspace(tmp_path, B, making="1" * 64)
    (killed.work / "progress").write_text("half")
    folder = killed.part("its own")
    folder.mkdir(parents=True)
    (folder / "y").write_text("")
    artifacts.collect_garbage(tmp_path, keep=[A, B])
    assert names_of_parts(tmp_path) == {f"{'1' * 12}/kept", f"{'1' * 12}/its own"}
    artifacts.collect_garbage(tmp_path, keep=[A])
    assert names_of_parts(tmp_path) == {f"{'1' * 12}/kept"}


def test_an_artifact_of_which_only_parts_are_left_is_cleared(tmp_path) -> None:
    folder = Workspace(tmp_path / "03" / "records", A).part("s")
    folder.mkdir(parents=True)
    (folder / "y").write_text("")
    assert [removed.path.name for removed in collect_garbage(tmp_path)] == ["unknown"]
