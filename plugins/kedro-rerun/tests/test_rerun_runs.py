"""Looking back at runs: what is recorded, what is told of it, and what survives damage."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kedro.framework import project as kedro_project
from kedro.framework.project import configure_project
from kedro.framework.startup import bootstrap_project
from rich.console import Console

from kedro_rerun import looking_back, maintenance, render_runs
from kedro_rerun.cli import rerun
from kedro_rerun.components import Settings
from kedro_rerun.errors import StalenessError
from kedro_rerun.history import History, NodeOutcome, Outcome
from kedro_rerun.locks import SWEEP, LockStore
from kedro_rerun.sweep import parse_grid
from staleness_dummy import DummyProject
from staleness_kedro import make_kedro_project

HEADLINES = """
import json

def headlines(places):
    if "evaluation" not in places:
        return {}
    return {"score": json.loads(places["evaluation"].read_text())["score"]}
"""


def headlines(places: Mapping[str, Path]) -> dict[str, float]:
    """As a project gives them."""
    found: dict = {}
    exec(HEADLINES, found)
    return found["headlines"](places)


class Scored(DummyProject):
    """The toy, whose runs have scores."""

    @property
    def settings(self) -> Settings:
        return dataclasses.replace(super().settings, headlines=headlines)

    @property
    def history(self) -> History:
        return History(self.data_root)

    def last(self) -> looking_back.Listed:
        return looking_back.list_runs(self.history)[0]


@pytest.fixture
def project(tmp_path) -> Scored:
    return Scored(tmp_path)


def text(renderable, width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    lines = capture.get().splitlines()
    assert max(map(len, lines), default=0) <= width
    return "\n".join(line.rstrip() for line in lines)


def test_a_run_tells_what_ran_how_long_and_what_came_out(project):
    project.run(provenance={"environment": "toy", "commit_sha": "a" * 40})
    (run,) = project.history.runs()
    assert (run.number, run.outcome, run.error) == (1, Outcome.DONE, None)
    assert {name: node.outcome for name, node in run.nodes.items()} == dict.fromkeys(
        ("ingest", "shard", "summary", "train", "evaluate", "report"), NodeOutcome.RAN
    )
    recorded = LockStore(project.data_root).read("train").runs[0]
    assert run.nodes["train"].fingerprint == recorded.fingerprint
    assert run.seconds >= run.cost > 0
    evaluation = json.loads((project.data_root / "08_reporting" / "evaluation.json").read_text())
    assert run.scores == evaluation
    assert (project.data_root / run.versions["model"] / "weights.txt").is_file()
    assert run.provenance == {"environment": "toy", "commit_sha": "a" * 40}


def test_each_run_is_told_by_what_was_changed_before_it(project):
    project.run()
    assert project.last().is_first
    project.set("train", optimizer={"lr": 2e-5})
    project.run()
    assert list(map(str, project.last().changes)) == ["train.optimizer.lr: 1e-05 -> 2e-05"]
    assert set(project.last().run.ran) == {"train", "evaluate", "report"}
    project.set("train", optimizer={"lr": 1e-5})
    assert project.run() == []
    back = project.last()
    assert list(map(str, back.changes)) == ["train.optimizer.lr: 2e-05 -> 1e-05"]
    assert back.run.nodes["train"].outcome == NodeOutcome.PUT_BACK
    assert back.run.scores == project.history.run(1).scores
    assert not back.run.ran


def test_nodes_that_a_run_left_out_are_compared_with_the_run_that_had_them(project):
    project.run()
    project.run(tags=["ingest"])
    assert project.last().changes == ()
    project.set("train", steps=5)
    project.run()
    assert list(map(str, project.last().changes)) == ["train.steps: 2 -> 5"]
    assert project.history.run(2).scores == {}, "it did not evaluate"


def test_parameters_of_nodes_that_a_failed_run_did_not_reach_are_known(project):
    project.run()
    project.set("shard", width=5)
    project.set("evaluate", shots=7)
    project.edit("sharding.py", "return", "raise OSError('https://me:secret@there')\n    return")
    with pytest.raises(OSError, match="there"):
        project.run()
    listed = project.last()
    assert {change.path for change in listed.changes} == {"shard.width", "evaluate.shots"}
    assert listed.code == ("shard",)
    assert (listed.run.outcome, listed.run.error) == (Outcome.FAILED, "https://***@there")
    outcomes = {name: node.outcome for name, node in listed.run.nodes.items()}
    assert (outcomes["shard"], outcomes["train"]) == (NodeOutcome.FAILED, NodeOutcome.WAITING)
    shown = text(render_runs.render_runs([listed], 0, []))
    assert "failed in shard: https://***@there" in shown
    assert "code of shard" in shown


def test_a_killed_run_is_told_from_one_that_goes_on(project):
    project.run()
    whole = project.history.run(1)
    begun = dataclasses.replace(whole, outcome=Outcome.RUNNING, scores={})
    project.history.write(begun)
    assert project.history.run(1).outcome == Outcome.RUNNING, "this process"
    gone = dataclasses.replace(begun, process=(2**22 + 1, whole.process[1]))
    project.history.write(gone)
    assert project.history.run(1).outcome == Outcome.KILLED
    project.history.write(begun)
    project.run()
    assert project.history.run(1).outcome == Outcome.KILLED, "there is one at a time"


def test_the_record_tells_where_a_run_was_killed(project):
    """Read while the node runs: what a kill then leaves."""
    project.run()
    found = project.data_root / ".staleness" / "runs" / "000002.json"
    project.edit(
        "training.py",
        "    model = Linear",
        f"    import shutil; shutil.copy({str(found)!r}, {str(project.folder / 'seen')!r})\n"
        "    model = Linear",
    )
    project.set("shard", width=5)
    project.switches = {"allow_expensive": True}
    project.run()
    found.write_bytes((project.folder / "seen").read_bytes())
    project.set("shard", width=3)
    project.run()
    killed = looking_back.list_runs(project.history)[1]
    assert killed.run.outcome == Outcome.KILLED
    assert set(killed.run.ran) == {"shard"}
    assert "killed in train" in text(render_runs.render_runs([killed], 0, []))
    assert [change.path for change in killed.changes] == ["shard.width"]


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"number": 1}'])
def test_a_damaged_record_is_named_and_stops_nothing(project, damage):
    project.run()
    path = project.history.folder / "000001.json"
    path.write_text(damage or path.read_text().replace('"done"', '"dome"'))
    assert project.run() == []
    assert [run.number for run in project.history.runs()] == [2]
    assert project.history.damaged() == [path]
    with pytest.raises(StalenessError, match="the record of run 1 is damaged"):
        project.history.run(1)
    assert str(path) in [problem.path for problem in maintenance.verify(project.data_root)]
    assert [item.path for item in maintenance.collect_garbage(project.data_root)] == [path]
    assert project.history.damaged() == []


def test_garbage_collection_keeps_records_of_what_is_remembered(project):
    for width in (2, 3, 4):
        project.set("shard", width=width)
        project.run()
    dropped = project.history.run(1)
    maintenance.collect_garbage(project.data_root, keep_runs=1)
    # Ingest is the same in all runs, so all are remembered until it is another.
    assert len(project.history.runs()) == 3
    project.set("ingest", drop=("%",))
    project.run()
    planned = maintenance.collect_garbage(project.data_root, keep_runs=1, dry_run=True)
    assert maintenance.collect_garbage(project.data_root, keep_runs=1) == planned
    assert [run.number for run in project.history.runs()] == [4]
    assert dropped.number not in {run.number for run in project.history.runs()}
    project.run()
    assert project.history.runs()[0].number == 5


def test_a_number_of_runs_is_kept(project, monkeypatch):
    monkeypatch.setattr(Scored, "settings", dataclasses.replace(project.settings, run_history=3))
    for _ in range(5):
        project.run()
    assert [run.number for run in project.history.runs()] == [5, 4, 3]


def test_scores_that_cannot_be_told_fail_no_run(project, monkeypatch, caplog):
    def broken(_places):
        raise KeyError("score")

    monkeypatch.setattr(Scored, "settings", dataclasses.replace(project.settings, headlines=broken))
    assert len(project.run()) == 6
    assert "The scores of run 1 cannot be told: KeyError" in caplog.text
    assert project.history.run(1).outcome == Outcome.DONE


def test_two_runs_side_by_side_tell_only_what_differs(project):
    project.run()
    project.set("train", optimizer={"lr": 3e-5})
    project.edit("evaluating.py", "tidy(weights)))", "tidy(weights))) + 1")
    (project.raw / "new.txt").write_text("four\n")
    project.libraries = {**project.libraries, "rich": "rich"}
    project.edit("evaluating.py", "def score", "import rich\n\ndef score")
    project.run()
    found = looking_back.compare_runs(project.history, 1, 2)
    assert list(map(str, found.parameters)) == ["train.optimizer.lr: 1e-05 -> 3e-05"]
    first, second = (project.history.run(number).scores["score"] for number in (1, 2))
    assert found.scores == {"score": (first, second)}
    assert found.code == {"evaluate": ("dummy.evaluating:score",)}
    assert found.inputs == ("ingest.path",)
    shown = text(render_runs.render_difference(found))
    assert "train.optimizer.lr  1e-05" in shown
    assert f"{second - first:+.4g}" in shown
    assert "code: evaluate (dummy.evaluating:score)" in shown
    assert "inputs: ingest.path" in shown
    assert "shard.width" not in shown
    same = looking_back.compare_runs(project.history, 2, 2)
    assert "Nothing else differs" in text(render_runs.render_difference(same))
    with pytest.raises(StalenessError, match=r"Found no run 7 .*there are: 1 to 2"):
        looking_back.compare_runs(project.history, 1, 7)


def test_many_scores_are_left_out_from_the_right(project):
    project.run()
    listed = project.last()
    names = [f"model{place} score" for place in range(12)]
    run = dataclasses.replace(listed.run, scores=dict.fromkeys(names, 1.2345))
    many = [dataclasses.replace(listed, run=run)]
    narrow, wide = (text(render_runs.render_runs(many, 0, []), width) for width in (80, 120))
    assert "model0" in narrow
    assert "more scores: --json tells them" in narrow
    assert 0 < narrow.count("1.234") < wide.count("1.234") < 12


def test_runs_of_sweeps_push_no_other_out_of_memory(project):
    history = dataclasses.replace(project.settings, history=2)
    lock_of = LockStore(project.data_root).read
    project.run()
    first = lock_of("train").head
    for steps in (3, 4, 5, 6):
        project.set("train", steps=steps)
        project.run(provenance={SWEEP: "s"})
    run = lock_of("train").runs[-1]
    lock = lock_of("train").completed(run, history.history)
    assert len(lock.runs) == 5
    assert lock.run(first)
    ordinary = dataclasses.replace(run, fingerprint="b" * 64, provenance={})
    more = lock.completed(ordinary, 1)
    assert more.run(first) is None, "one ordinary run is remembered"
    assert len(more.runs) == 5


def test_a_grid_is_every_combination_of_what_is_given():
    grid = parse_grid(["a.lr=1e-4,3e-4", "b.steps=2,b.names=[x,y],[z],b.flag=true"])
    assert [dict(setting.varied) for setting in grid] == [
        {"a.lr": "1e-4", "b.names": "[x,y]"},
        {"a.lr": "1e-4", "b.names": "[z]"},
        {"a.lr": "3e-4", "b.names": "[x,y]"},
        {"a.lr": "3e-4", "b.names": "[z]"},
    ]
    assert grid[3].parameters == {
        "a": {"lr": 3e-4},
        "b": {"steps": 2, "names": ["z"], "flag": True},
    }
    assert len(parse_grid(["a=1,1,2"])) == 2
    for bad in (["1,2"], ["a="], ["a=1,,2"], ["a=1", "a=2"]):
        with pytest.raises(StalenessError, match="--params: found"):
            parse_grid(bad)


# Commands, in a Kedro project


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The toy as a project in this process, with scores; the project before is back behind it."""
    before, path = kedro_project.PACKAGE_NAME, list(sys.path)
    make_kedro_project(tmp_path)
    source = tmp_path / "src" / "dummy"
    (source / "headlines.py").write_text(HEADLINES)
    settings = (source / "settings.py").read_text()
    (source / "settings.py").write_text(
        settings.replace("import StalenessSession", "import Settings, session_class").replace(
            "SESSION_CLASS = StalenessSession",
            "from dummy.headlines import headlines\n"
            "SESSION_CLASS = session_class(Settings(headlines=headlines))",
        )
    )
    _forget()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    bootstrap_project(tmp_path)
    yield tmp_path
    _forget()
    sys.path[:] = path
    if before is not None:
        configure_project(before)


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dummy"]:
        del sys.modules[name]


def give(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(rerun, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_sweep_runs_what_each_setting_needs_and_goes_on_after_a_kill(folder):
    grid = ("sweep", "--params=train.steps=3,2", "--params=evaluate.shots=4")
    planned = json.loads(give(*grid, "--dry-run", "--json").stdout)
    assert [item["would_run"] for item in planned] == [
        ["ingest", "shard", "summary", "train", "evaluate", "report"],
        ["train", "evaluate", "report"],
    ]
    assert planned[1]["shared"] == ["ingest", "shard", "summary"]
    shown = give(*grid, "--dry-run").output
    assert "2 settings would run 9 nodes" in shown
    assert "nothing was run" in shown
    assert not (folder / "data" / "base" / "model").exists()

    # One that fails stops no other.
    training = folder / "src" / "dummy" / "training.py"
    failing = (
        "    if config.steps == 3:\n        raise ValueError('it diverged')\n    model = Linear"
    )
    training.write_text(training.read_text().replace("    model = Linear", failing))
    result = give(*grid, "--json", code=1)
    found = json.loads(result.stdout)
    assert [(item["outcome"], item["error"]) for item in found] == [
        ("failed", "it diverged"),
        ("done", None),
    ]
    assert list(found[1]["ran"]) == ["train", "evaluate", "report"], "summary ran before"
    assert found[1]["scores"]["score"] > 0
    assert "[1/2] train.steps=3: runs 6 nodes in unknown time." in result.stderr
    assert "[1/2] run 1 failed: it diverged. 1 left, unknown time." in result.stderr

    # The same again is what follows a kill: what is finished is fresh.
    again = give(*grid, code=1).output
    assert "[2/2] train.steps=2: finished in run 2." in again
    assert "failed: it diverged" in again
    assert "1 of 2 settings failed." in again
    rows = [line.split() for line in again.splitlines() if "/6" in line]
    assert [row[:2] for row in rows] == [["3", "3"], ["2", "2"]], again
    assert rows[1][-2:] == ["3/6", f"{found[1]['scores']['score']:.4g}"]

    listed = json.loads(give("runs", "--json").stdout)["runs"]
    assert [run["run"] for run in listed] == [3, 2, 1]
    assert listed[1]["changed"] == {"train.steps": ["3", "2"]}
    assert "--params=train.steps=2,evaluate.shots=4" in listed[1]["command"]
    shown = give("runs").output
    assert "train.steps: 3 -> 2" in shown
    assert "failed in train: it diverged" in shown
    parted = json.loads(give("diff", "1", "2", "--json").stdout)
    assert parted["parameters"] == {"train.steps": ["3", "2"]}
    assert parted["scores"]["score"] == [None, found[1]["scores"]["score"]]
    assert "train.steps" in give("diff", "1", "2").output


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ("train.optimizr.lr=1,2", "did you mean 'train.optimizer"),
        ("trian.steps=1,2", "trian.steps: found 'trian'; did you mean 'train'?"),
        ("train.steps=1,2 --pipeline=trian", "--pipeline: found 'trian'"),
        ("evaluate.shots=1,2 --pipeline=train", "the same to every node of train"),
        ("train.log_interval=1,2", "the same to every node of the default pipeline"),
        ("train.steps=", "--params: found 'train.steps='"),
    ],
)
def test_a_sweep_refuses_before_any_run(folder, grid, told):
    result = give("sweep", "--params", *grid.split(), code=1)
    assert told in result.output
    assert not list(folder.glob("data/*/.staleness/runs/*"))


def test_commands_tell_as_text_and_as_json(folder):
    assert "No run is recorded yet" in give("runs").output
    give("sweep", "--params=train.steps=3")
    (folder / "src" / "dummy" / "layers.py").write_text(
        (folder / "src" / "dummy" / "layers.py").read_text().replace("2.0", "4.0")
    )
    (folder / "src" / "dummy" / "common.py").write_text(
        (folder / "src" / "dummy" / "common.py").read_text().replace("text.upper", "text.lower")
    )
    params = "--params=train.steps=3"
    shown = give("accept", "train", "summary", params).output
    assert shown.startswith("Accepted: ")
    rows = json.loads(give("status", "--json", params).stdout)
    assert {row["state"] for row in rows} == {"fresh"}
    pending = give("explain", "evaluate", "--params=train.steps=4,evaluate.shots=9").output
    assert "evaluate.shots: 9" in pending
    assert pending.index("parameters (1)") < pending.index("code (")
    removed = json.loads(give("gc", "--dry-run", "--keep-runs=0", "--json").stdout)
    assert removed == []
    assert "Contents were not" in give("verify").output
    assert "every file was hashed" in give("verify", "--deep").output
    assert json.loads(give("verify", "--json").stdout) == []
    assert "not both" in give("accept", code=2).output
