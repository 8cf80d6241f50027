from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import replace

import pytest
from rich.console import Console

from kedro_rerun import maintenance, render
from kedro_rerun.artifacts import versions
from kedro_rerun.history import History
from kedro_rerun.locks import LockStore
from kedro_rerun.looking_back import list_runs
from kedro_rerun.run_lock import hold_run_lock
from staleness_dummy import NODES, DummyProject


@pytest.fixture
def built(tmp_path) -> DummyProject:
    project = DummyProject(tmp_path)
    project.run()
    return project


def show(renderable) -> str:
    console = Console(width=200, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_status_says_what_would_run_and_why(built):
    rows = maintenance.status(built.planner())
    assert maintenance.exit_code(rows) == 0
    assert [row.node for row in rows if row.finished_at is None] == []
    assert "everything is fresh" in show(render.render_status(rows))
    built.set("train", optimizer={"lr": 2e-5})
    rows = maintenance.status(built.planner())
    assert maintenance.exit_code(rows) == 3
    text = show(render.render_status(rows))
    assert "params:train.optimizer.lr: 1e-05 -> 2e-05" in text
    assert "upstream:train: runs first" in text
    assert "3 of 6 nodes would run, 2 of them only if the nodes before make something new." in text
    (row,) = [
        row for row in json.loads(json.dumps(maintenance.as_json(rows))) if row["node"] == "train"
    ]
    assert row["state"] == "stale"
    assert row["reasons"] == ["params:train.optimizer.lr: 1e-05 -> 2e-05"]


def test_status_of_a_fresh_checkout_is_missing(tmp_path):
    rows = maintenance.status(DummyProject(tmp_path).planner())
    assert {row.state for row in rows} == {"missing"}
    assert maintenance.exit_code(rows) == 3


def test_status_of_a_deleted_output_is_missing(built):
    (built.data_root / "08_reporting" / "evaluation.json").unlink()
    status = built.status()
    assert status["evaluate"].state == "missing"
    assert status["report"].state == "stale"


def test_status_foresees_outputs_that_will_be_put_back(built):
    built.set("shard", width=2)
    built.run()
    built.set("shard", width=3)
    rows = maintenance.status(built.planner())
    assert maintenance.exit_code(rows) == 0
    assert {row.node: row.action for row in rows}["train"] == "activate"
    assert "an earlier run's outputs will be put back" in show(render.render_status(rows))


def test_status_changes_nothing_but_caches(built):
    def snapshot():
        return {
            path: path.stat().st_mtime_ns
            for path in built.data_root.rglob("*")
            if "cache" not in path.parts and path.is_file()
        }

    built.set("train", steps=7)
    before = snapshot()
    built.status()
    assert snapshot() == before


def test_explain_shows_what_a_node_is_made_from(built):
    explanation = maintenance.explain(built.planner(), "train")
    assert explanation.components["params:train.optimizer.lr"] == "1e-05"
    text = show(render.render_explanation(explanation))
    assert "train: fresh" in text
    assert "dummy.layers:Linear" in text
    assert "in place" in text
    with pytest.raises(ValueError, match="node: found 'trane'; did you mean 'train'"):
        maintenance.explain(built.planner(), "trane")


def test_accept_keeps_results_of_changed_code(built):
    built.edit("layers.py", "self.scale() *", "1.0 * self.scale() *")
    assert built.status()["train"].state == "stale"
    assert [row.state for row in maintenance.accept(built.planner(), ["train"])] == ["fresh"]
    assert built.run() == []
    (run, first) = maintenance.explain(built.planner(), "train").runs
    assert run["accepted"]
    assert not first["accepted"]
    # The accepted version has the earlier fingerprint's folder; going back and forth finds it.
    built.edit("layers.py", "1.0 * self.scale() *", "self.scale() *")
    assert built.run() == []
    assert maintenance.collect_garbage(built.data_root) == []


def test_accept_refuses_what_it_cannot_vouch_for(built):
    built.set("shard", width=2)
    with pytest.raises(ValueError, match=r"train: its inputs are not known .*: shard"):
        maintenance.accept(built.planner(), ["train"])
    next(built.data_root.glob("shards/*/shards.txt")).write_text("spoiled")
    with pytest.raises(ValueError, match=r"its output shards not as it was written .*shards.txt"):
        maintenance.accept(built.planner(), ["shard"])
    (built.data_root / "08_reporting" / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"its output summary not as it was written \(missing\)"):
        maintenance.accept(built.planner(), ["summary"])


def test_several_nodes_are_accepted_in_the_order_in_which_they_run(built):
    built.edit("sharding.py", "helpers.chunks(text, width)", "list(helpers.chunks(text, width))")
    built.edit("layers.py", "self.scale() *", "1.0 * self.scale() *")
    rows = maintenance.accept(built.planner(), ["train", "shard"])
    assert [(row.node, row.state) for row in rows] == [("shard", "fresh"), ("train", "fresh")]
    assert built.run() == []


def test_what_is_fresh_stays_as_it_is_recorded_when_it_is_accepted(built):
    before = LockStore(built.data_root).read("train")
    assert maintenance.accept(built.planner(), ["train"])[0].state == "fresh"
    assert LockStore(built.data_root).read("train") == before
    built.set("train", steps=5)
    built.run()
    built.set("train", steps=2)
    # In place is what five steps made.
    with pytest.raises(ValueError, match="train: found outputs in place that are not what it"):
        maintenance.accept(built.planner(), ["train"])
    assert maintenance.accept_all(built.planner()) == []
    assert built.run() == []


def test_accepting_all_leaves_what_more_than_code_makes_stale(built):
    built.edit("sharding.py", "helpers.chunks(text, width)", "list(helpers.chunks(text, width))")
    built.edit("layers.py", "self.scale() *", "1.0 * self.scale() *")
    built.edit("common.py", "text.upper", "text.lower")
    built.set("evaluate", shots=5)
    (built.data_root / "08_reporting" / "summary.json").write_text("damaged")
    rows = {row.node: row for row in maintenance.accept_all(built.planner())}
    assert {name: row.state for name, row in rows.items()} == {
        "shard": "fresh", "train": "fresh", "evaluate": "stale", "report": "stale",
        "summary": "stale",
    }  # fmt: skip
    text = show(render.render_accepted(list(rows.values())))
    assert text.startswith("Accepted: shard, train.\n")
    assert "params:evaluate.shots: 4 -> 5" in text
    assert sorted(built.run()) == ["evaluate", "report", "summary"]


def test_nodes_before_are_one_line_as_wide_as_there_is_room(built):
    names = [f"prepare_{place}_of_many" for place in range(9)]
    reasons = ("params:a.b: 1 -> 2", *(f"upstream:{name}: runs first" for name in names))
    row = replace(built.status()["report"], state="stale", action="run", reasons=reasons)
    for width in (80, 120):
        console = Console(width=width, no_color=True)
        with console.capture() as capture:
            console.print(render.render_status([row]))
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= width
        (told,) = [line for line in lines if "upstream" in line]
        assert "upstream: 9 nodes run first: prepare_0_of_many" in told
        assert told.rstrip().endswith("…")
    assert maintenance.as_json([row])[0]["reasons"] == reasons


def test_parameters_are_told_before_inputs_are_known(built):
    built.set("shard", width=7)
    built.set("evaluate", shots=9)
    explanation = maintenance.explain(built.planner(), "evaluate")
    assert explanation.fingerprint is None
    assert explanation.components["params:evaluate.shots"] == "9"
    assert "input:shards" not in explanation.components
    text = show(render.render_explanation(explanation))
    assert text.index("evaluate.shots: 9") < text.index("code (")


def test_garbage_collection_drops_what_no_remembered_run_made(built):
    for width in (2, 4, 5):
        built.set("shard", width=width)
        built.run()
    assert len(versions(built.data_root / "model")) == 4
    planned = maintenance.collect_garbage(built.data_root, keep_runs=2, dry_run=True)
    assert len(versions(built.data_root / "model")) == 4
    removed = maintenance.collect_garbage(built.data_root, keep_runs=2)
    assert removed == planned
    assert len(versions(built.data_root / "model")) == 2
    assert "removed, " in show(render.render_removed(removed, False, built.data_root))
    for item in removed:
        told = show(render.render_removed(removed, False, built.data_root, verbose=True))
        assert str(item.path.relative_to(built.data_root)) in told
    summary = show(render.render_removed(removed, False, built.data_root)).splitlines()
    rows = {tuple(line.split()[:2]): line.split()[2] for line in summary}
    of_model = [item for item in removed if item.path.parent.name == "model"]
    assert rows["model", "versions"] == str(len(of_model))
    assert built.run() == []
    built.set("shard", width=4)
    assert built.run() == []
    built.set("shard", width=2)
    assert built.run() == ["shard", "train", "evaluate", "report"]


def test_garbage_collection_forgets_nodes_that_are_gone(built):
    maintenance.collect_garbage(built.data_root, known_nodes=set(NODES) - {"summary"})
    assert built.status()["summary"].reasons == ("no record of a run",)
    assert built.status()["train"].state == "fresh"


def test_garbage_collection_waits_for_no_run(built):
    with (
        hold_run_lock(built.data_root),
        pytest.raises(ValueError, match="another run in progress"),
    ):
        maintenance.collect_garbage(built.data_root)


def test_garbage_collection_keeps_progress_of_an_interrupted_run(built):
    built.set("train", steps=3)
    built.edit(
        "training.py", "return json.dumps(", "raise OSError('power')\n    return json.dumps("
    )
    with pytest.raises(OSError, match="power"):
        built.run()
    assert maintenance.collect_garbage(built.data_root) == []
    assert list(built.data_root.glob("model/.work/*/rows.json"))
    built.set("train", steps=4)
    with pytest.raises(OSError, match="power"):
        built.run()
    (removed,) = maintenance.collect_garbage(built.data_root)
    assert removed.path.parent.name == ".work"


def test_verify_names_every_damage(built):
    assert maintenance.verify(built.data_root, deep=True) == []
    assert "every file was hashed" in show(render.render_problems([], deep=True))
    assert "Contents were not compared" in show(render.render_problems([], deep=False))
    weights = next(built.data_root.glob("model/*/weights.txt"))
    weights.write_text(weights.read_text()[::-1])
    next(built.data_root.glob("shards/*/manifest.json")).write_text("{")
    problems = maintenance.verify(built.data_root)
    shards = next(built.data_root.glob("shards/[0-9a-f]*")).name
    assert [problem.text for problem in problems] == [
        f"names {shards}, which is missing or damaged.",
        "its manifest is missing or damaged.",
    ]
    deep = maintenance.verify(built.data_root, deep=True)
    assert [problem.text for problem in deep if "model" in problem.path] == [
        "weights.txt: its content differs from what was published."
    ]
    assert "weights.txt" in show(render.render_problems(deep, deep=True))


@pytest.fixture
def read_only(built, monkeypatch) -> DummyProject:
    """A built project whose data root takes no more writes, as a read-only mount's does not.

    Permissions would not do: tests may run as root.
    """

    def refusing(function, writes):
        def call(path, *arguments, **options):
            inside = os.fspath(path).startswith(os.fspath(built.data_root))
            if inside and writes(*arguments, **options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
            return function(path, *arguments, **options)

        return call

    opens = refusing(io.open, lambda mode="r", *_, **__: mode[0] != "r" or "+" in mode)
    monkeypatch.setattr(io, "open", opens)
    monkeypatch.setattr(os, "open", refusing(os.open, lambda flags, *_, **__: flags & 3))
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "utime"):
        always = refusing(getattr(os, name), lambda *_, **__: True)
        monkeypatch.setattr(os, name, always)
    with pytest.raises(OSError, match="Read-only"):
        (built.data_root / "new").write_text("")
    return built


def test_commands_that_only_look_work_on_a_read_only_data_root(read_only):
    (read_only.raw / "new.txt").write_text("so there is a hash to keep")
    assert read_only.status()["ingest"].state == "stale"
    assert maintenance.explain(read_only.planner(), "ingest").fingerprint is not None
    assert maintenance.verify(read_only.data_root, deep=True) == []
    assert [listed.run.number for listed in list_runs(History(read_only.data_root))] == [1]
    assert maintenance.collect_garbage(read_only.data_root, keep_runs=0, dry_run=True) == []


def test_commands_that_write_say_that_a_data_root_is_read_only(read_only):
    told = "found a folder that cannot be written to"
    with pytest.raises(ValueError, match=told):
        maintenance.collect_garbage(read_only.data_root)
    with pytest.raises(ValueError, match=told):
        maintenance.accept(read_only.planner(), ["train"])
    with pytest.raises(ValueError, match=told):
        read_only.run()
