"""Runs of some nodes: what they say of what they read, and what stops before the first node."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner
from kedro.io import DataCatalog
from rich.console import Console

from kedro_rerun.cli import UserErrorCommand
from kedro_rerun.components import Settings
from kedro_rerun.context import building
from kedro_rerun.errors import StalenessError
from kedro_rerun.graph import Graph
from kedro_rerun.kedro_graph import build_graph
from kedro_rerun.lineage import Lineage
from kedro_rerun.locks import NodeLock, OutputRecord, RunRecord
from kedro_rerun.planning import Planner
from kedro_rerun.preflight import Mistake, PreflightError, concerning
from kedro_rerun.render import render_status
from kedro_rerun.runner import Earlier
from kedro_rerun.verdict import Action
from staleness_dummy import DummyProject


class Partial(DummyProject):
    """The toy, of which some nodes are run."""

    extra: ClassVar[dict] = {}

    @property
    def settings(self) -> Settings:
        return dataclasses.replace(super().settings, **self.extra)

    def run_nodes(self, *names: str, **options) -> list[str]:
        whole, catalog = self.load()
        chosen = whole.filter(node_names=list(names))
        read = frozenset(chosen.inputs() & whole.all_outputs())
        graph = build_graph(whole.to_outputs(*read), catalog)
        earlier = Earlier(graph, read, "kedro run --env=toy")
        return self._run(chosen, catalog, earlier=lambda _: earlier, **options)

    def _run(self, pipeline, catalog: DataCatalog, **options) -> list[str]:
        from kedro_rerun.runner import RunOptions, StalenessRunner
        from staleness_dummy import Recorder

        recorder = Recorder()
        given = RunOptions(self.data_root, self.settings, **options)
        runner = StalenessRunner(lambda: given)
        runner.run(pipeline, catalog, self.hook_manager(recorder), "run")
        return recorder.ran


@pytest.fixture
def project(tmp_path: Path) -> Partial:
    return Partial(tmp_path)


@pytest.fixture
def built(project) -> Partial:
    project.run()
    return project


def test_a_run_of_some_nodes_names_what_it_reads_that_is_stale(built, caplog):
    built.set("shard", width=4)
    with caplog.at_level(logging.INFO):
        assert built.run_nodes("train") == []
    assert "reads one dataset that they would make anew" in caplog.text
    assert "shards (shard): params:shard.width: 3 -> 4" in caplog.text
    assert "To make them fresh first: kedro run --env=toy --to-nodes=shard" in caplog.text
    last = caplog.messages[-2] if "successfully" in caplog.messages[-1] else caplog.messages[-1]
    assert "the others were fresh" not in caplog.text
    assert "of which 1 datasets are stale" in last


def test_the_cause_is_looked_for_upstream(built, caplog):
    built.set("ingest", drop=("%",))
    built.run_nodes("evaluate")
    assert "model (train): params:ingest.drop" in caplog.text
    assert "of ingest" in caplog.text


def test_what_is_missing_is_said_before_it_is_read(project):
    told = r"shards \(shard\): missing; no record of a run.*as there is no shards\."
    with pytest.raises(StalenessError, match=f"(?s){told}"):
        project.run_nodes("train")


def test_fresh_inputs_are_not_worth_a_word(built, caplog):
    with caplog.at_level(logging.INFO):
        assert built.run_nodes("train") == []
    assert "would make anew" not in caplog.text
    assert "Ran 0 of 1 nodes; the others were fresh." in caplog.text


def test_an_earlier_version_in_reach_is_stale_all_the_same(built, caplog):
    built.set("shard", width=4)
    built.run()
    built.set("shard", width=3)
    built.run_nodes("train")
    assert "shards (shard): an earlier version is what it would be now" in caplog.text


@pytest.mark.parametrize(("what", "refused"), [("refuse", True), ("ignore", False)])
def test_a_project_may_refuse_such_runs_or_want_no_word(built, caplog, what, refused):
    built.extra = {"stale_inputs": what}
    built.set("shard", width=4)
    if refused:
        with pytest.raises(StalenessError, match=r"(?s)shards \(shard\).*stale_inputs"):
            built.run_nodes("train")
    else:
        built.run_nodes("train")
    assert "would make anew" not in caplog.text


# Preflight


def too_narrow(graph: Graph) -> list[Mistake]:
    width = graph.datasets["params:shard"].value.width
    found = f"shard.width: found {width}, expected less than 9."
    return [Mistake(found, frozenset({"shard"}))] if width > 8 else []


def test_mistakes_stop_a_run_before_its_first_node(built):
    built.extra = {"preflight": too_narrow}
    assert built.run() == []
    built.set("shard", width=9)
    built.set("ingest", drop=("%",))
    with pytest.raises(PreflightError, match=r"(?s)one mistake.*shard\.width: found 9"):
        built.run()
    rows = built.status()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_status(rows.values()))
    assert console.export_text().count("To be mended first:\n  - shard.width: found 9") == 1
    assert rows["shard"].mistakes == ("shard.width: found 9, expected less than 9.",)
    assert rows["ingest"].mistakes == ()


def test_mistakes_hold_no_secret():
    found = [Mistake("a.path: found 's3://me:secret@bucket/x'", frozenset({"a", "b"}))] * 2
    assert concerning(found, ["b"]) == ["a.path: found 's3://***@bucket/x'"]
    assert concerning(found, ["c"]) == []


def test_mistakes_of_nodes_that_need_not_run_stop_none(built):
    built.set("shard", width=9)
    built.run()
    built.extra = {"preflight": too_narrow}
    assert built.run() == []
    built.set("evaluate", shots=5)
    assert built.run() == ["evaluate", "report"]
    assert built.status()["shard"].mistakes == ()
    with pytest.raises(PreflightError):
        built.run(force=True)


# Lineages


def lock(node: str, output: str, *runs: tuple[str, dict[str, str]], head: int = -1) -> NodeLock:
    records = tuple(
        RunRecord(f"{node}{digest}", {f"input:{k}": v for k, v in read.items()}, {
            output: OutputRecord(digest)})
        for digest, read in runs
    )  # fmt: skip
    return NodeLock(node, head=records[head].fingerprint, runs=records)


def of_one_run() -> list[NodeLock]:
    return [
        lock("pack", "shards", ("s1", {"raw": "r"})),
        lock("train", "model", ("m1", {"shards": "s1"})),
        lock("evaluate", "scores", ("e1", {"model": "m1", "shards": "s1"})),
    ]


def test_what_comes_of_one_run_is_not_mixed():
    lineage = Lineage(of_one_run())
    assert lineage.mixed({"model": "m1", "scores": "e1"}) == []


def test_two_versions_behind_what_is_read_are_named_with_what_was_made_of_them():
    pack, train, evaluate = of_one_run()
    train = lock("train", "model", ("m1", {"shards": "s1"}), ("m2", {"shards": "s1"}))
    assert Lineage([pack, train, evaluate]).mixed({"model": "m2", "scores": "e1"}) == [
        "model: version m1 behind scores; version m2 read itself, in place now."
    ]
    pack = lock("pack", "shards", ("s1", {"raw": "r"}), ("s2", {"raw": "r"}))
    train = lock("train", "model", ("m1", {"shards": "s2"}))
    (line,) = Lineage([pack, train, evaluate]).mixed({"model": "m1", "scores": "e1"})
    assert line == "shards: version s1 behind scores; version s2 behind model, in place now."


def test_all_of_an_earlier_version_are_not_of_the_present_one():
    _, train, evaluate = of_one_run()
    pack = lock("pack", "shards", ("s1", {"raw": "r"}), ("s2", {"raw": "r"}))
    (line,) = Lineage([pack, train, evaluate]).mixed({"model": "m1", "scores": "e1"})
    assert line == "shards: version s1 behind model, scores; version s2 in place now."


def test_a_page_gets_to_know_what_is_mixed_and_is_made_anew_when_nothing_is(built):
    """Through the runner: the report reads `evaluation` of another model than the one in place."""
    from kedro.pipeline import Pipeline

    whole, _ = built.load()
    seen: list[tuple[str, ...]] = []
    tagged = Pipeline(whole.nodes).filter(node_names=["report"]).tag("shows_lineage")
    rest = Pipeline([node for node in whole.nodes if node.name != "report"])

    def report_only() -> list[str]:
        def noted(context):
            seen.append(context.mixed)
            return building(context)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kedro_rerun.runner.building", noted)
            return built._run(tagged, built.load()[1])

    assert report_only() == [], "of one lineage it is what the whole run made"
    built.set("train", steps=5)
    without = rest.filter(node_names=["train"])
    assert built._run(without, built.load()[1]) == ["train"]
    assert report_only() == ["report"]
    (line,) = seen[-1]
    assert line.startswith("model: version ")
    assert "behind evaluation" in line
    assert report_only() == [], "the same mixture is shown already"
    built.set("train", steps=2)
    assert built._run(without, built.load()[1]) == [], "the earlier version is put back"
    assert report_only() == [], "and so is the page without a banner"
    assert built.status()["report"].state == "fresh"
    # What will be put back is foreseen: status names no mixture that the next run does not find.
    built.set("train", steps=7)
    built._run(without, built.load()[1])
    built.set("train", steps=2)
    graph = build_graph(rest + tagged, built.load()[1])
    plan = Planner(graph, built.data_root, built.settings).plan()
    assert (plan["train"].action, plan["report"].action) == (Action.ACTIVATE, Action.SKIP)


# Errors of nodes


def failing(built: Partial, statement: str, caplog) -> str:
    built.edit("nodes.py", "def summary(", f"def summary(*_, **__):\n    {statement}\n\ndef old(")
    with pytest.raises(Exception, match=r"\w"):
        built.run()
    return caplog.text


@pytest.mark.parametrize(
    ("statement", "kinds", "is_users"),
    [
        ("raise ValueError('found 1, expected 2')", (ValueError,), True),
        ("raise ValueError('found 1, expected 2')", (), False),
        ("raise KeyError('found 1')", (ValueError,), False),
        ("import json; json.loads('{')", (ValueError,), False),
    ],
)
def test_what_a_user_can_mend_is_no_reason_to_try_again(built, caplog, statement, kinds, is_users):
    built.extra = {"user_errors": kinds}
    told = failing(built, statement, caplog)
    assert "summary failed." in told
    assert ("Give the same command again" in told) is not is_users
    assert "failed with error" not in told, "Kedro's line repeats what the command shows"


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_debug_shows_the_traceback(options):
    @click.command(cls=UserErrorCommand)
    def refused() -> None:
        raise StalenessError("found 1, expected 2.")

    result = CliRunner().invoke(refused, options)
    assert result.exit_code == 1
    if options:
        assert isinstance(result.exception, StalenessError)
    else:
        assert result.output == "Error: found 1, expected 2.\n"
