"""Three lines added to a project like Kedro's spaceflights starter; then edits of every kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kedro.pipeline import Node
from kedro_viz.api.rest.responses.run_events import transform_events_to_structured_format
from kedro_viz.api.rest.responses.utils import RunEventStatus
from kedro_viz.integrations.kedro.hooks_utils import hash_node

from kedro_rerun.maintenance import StatusRow
from kedro_rerun.viz import run_events
from spaceflights import FILES, NODES, THREE_LINES, Kedro, Spaceflights

PROCESSING = "src/spaceflights/pipelines/data_processing/nodes.py"
SCIENCE = "src/spaceflights/pipelines/data_science/nodes.py"
AFTER_TABLE = {"split_data_node", "train_model_node", "evaluate_model_node"}
AFTER_SHUTTLES = AFTER_TABLE | {
    "create_model_input_table_node",
    "compare_prices_node",
    "announce_node",
}


@pytest.fixture(scope="module")
def kedro(tmp_path_factory) -> Iterator[Kedro]:
    kedro = Kedro(tmp_path_factory.mktemp("server"))
    yield kedro
    kedro.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory, kedro) -> Spaceflights:
    """The starter with the three lines, after its first run."""
    project = Spaceflights(tmp_path_factory.mktemp("built") / "spaceflights", kedro)
    project.add_three_lines()
    assert project.run()[0] == NODES
    return project


@pytest.fixture
def project(built, tmp_path) -> Spaceflights:
    return built.copy_to(tmp_path / "spaceflights")


def test_three_lines_are_all(tmp_path, kedro):
    assert sum(map(len, THREE_LINES.values())) == 3
    project = Spaceflights(tmp_path / "spaceflights", kedro)
    assert project.run()[0] == NODES
    assert project.run()[0] == NODES, "so it is without"
    code, told = project.call("rerun", "status")
    assert code == 1
    assert "SESSION_CLASS = StalenessSession" in told
    project.add_three_lines()
    assert project.run()[0] == NODES, "nothing is known of what lies there"
    ran, output = project.run()
    assert ran == set()
    assert f"Ran 0 of {len(NODES)} nodes" in output
    assert project.call("rerun", "status")[0] == 0
    assert project.run("--runner", "SequentialRunner")[0] == NODES


def test_the_reason_names_the_function_and_who_calls_it(project):
    """A helper of a helper: only nodes that come to it run, and each says how it does."""
    project.edit("src/spaceflights/text.py", "[$,%]", "[$,% ]")
    reasons = project.status()
    for node, function in (
        ("preprocess_companies_node", "preprocess_companies"),
        ("preprocess_shuttles_node", "preprocess_shuttles"),
    ):
        (reason,) = reasons[node]
        assert reason.startswith("code:spaceflights.text:strip_signs: changed (")
        assert reason.endswith(f"), reached by nodes.{function} > text.as_number")
    assert project.run()[0] == {"preprocess_companies_node", "preprocess_shuttles_node"}
    project.edit("src/spaceflights/text.py", "regex=True)", "regex=True)  # Of amounts.")
    project.edit(
        "src/spaceflights/text.py", "def title", "def unused():\n    return 1\n\n\ndef title"
    )
    assert project.run()[0] == set()


@pytest.mark.parametrize(
    ("name", "before", "after", "expected", "reason"),
    [
        (
            "conf/base/parameters_data_science.yml",
            "test_size: 0.25",
            "test_size: 0.5",
            AFTER_TABLE,
            "split_data_node: params:model_options.test_size: 0.25 -> 0.5",
        ),
        (
            SCIENCE,
            "weights.round(6)",
            "weights.round(3)",
            # `split_data` only for the tables that it keeps in memory.
            AFTER_TABLE,
            "train_model_node: code:spaceflights.pipelines.data_science.nodes:train_model",
        ),
        (
            "src/spaceflights/text.py",
            '.replace("_", " ")',
            '.replace("_", "-")',
            {"compare_prices_node", "announce_node"},
            "compare_prices_node: code:spaceflights.text:title",
        ),
        (
            "conf/base/catalog.yml",
            'sep: ";"',
            'sep: ";", decimal: ","',
            {"preprocess_shuttles_node"},
            "preprocess_shuttles_node: catalog:shuttles.load_args.decimal",
        ),
        (
            "data/01_raw/shuttles.csv",
            "$1,000",
            "$1,500",
            {"preprocess_shuttles_node"} | AFTER_SHUTTLES,
            "preprocess_shuttles_node: input:shuttles: changed",
        ),
        (PROCESSING, "# Of the list, without taxes.", "# Of the list.", set(), ""),
        (PROCESSING, '"""Prices as numbers."""', '"""Prices, as numbers."""', set(), ""),
    ],
    ids=["parameter", "function", "helper", "catalogue", "raw", "comment", "docstring"],
)
def test_an_edit_reruns_what_it_touches_and_says_why(
    project, name, before, after, expected, reason
):
    project.edit(name, before, after)
    ran, output = project.run()
    assert ran == expected, output
    assert f"Running {reason}" in output if expected else "Ran 0 of" in output
    assert project.run()[0] == set()


def test_status_tells_what_a_run_would_do(project):
    assert project.status() == {}
    project.edit(SCIENCE, "weights.round(6)", "weights.round(3)")
    reasons = project.status()
    assert reasons.keys() == {"train_model_node", "evaluate_model_node"}
    assert reasons["evaluate_model_node"] == ["upstream:train_model_node: runs first"]


def test_kedro_viz_colours_what_is_stale(project):
    """Read as Kedro-Viz reads it; where it cannot be written, the status is told all the same."""
    code, told = project.call("rerun", "status", "--viz", "--json")
    assert code == 0, told
    events = project.folder / ".viz" / "kedro_pipeline_events.json"
    fresh = transform_events_to_structured_format(json.loads(events.read_text()))
    assert [node.status for node in fresh.nodes.values()] == [RunEventStatus.SUCCESS] * len(NODES)
    rows = json.loads(told[told.index("[\n") : told.rindex("]") + 1])
    seconds = sorted(row["seconds"] for row in rows)
    assert sorted(node.duration for node in fresh.nodes.values()) == seconds
    assert fresh.pipeline.duration == pytest.approx(sum(seconds))
    assert fresh.pipeline.status == RunEventStatus.SUCCESS

    project.edit(SCIENCE, "weights.round(6)", "weights.round(3)")
    assert project.call("rerun", "status", "--viz")[0] == 3
    found = transform_events_to_structured_format(json.loads(events.read_text()))
    errors = {key: node.error.message for key, node in found.nodes.items() if node.error}
    names = {event["node_id"]: event["node"] for event in json.loads(events.read_text())[:-1]}
    assert {names[key] for key in errors} == {"train_model_node", "evaluate_model_node"}
    for key, node in found.nodes.items():
        assert node.status == RunEventStatus("failed" if key in errors else "success")
    told = {names[key]: message for key, message in errors.items()}
    assert "code:spaceflights.pipelines.data_science.nodes:train_model" in told["train_model_node"]
    assert "if the nodes before it make something new" in told["evaluate_model_node"]
    assert found.pipeline.status == RunEventStatus.FAILED
    assert found.pipeline.error.message.startswith("2 of 8 nodes would run: ")

    shutil.rmtree(events.parent)
    events.parent.write_text("not a folder")
    code, told = project.call("rerun", "status", "--viz")
    assert (code, "Kedro-Viz is not told: " in told) == (3, True)
    assert "train_model_node" in told


def test_kedro_viz_is_told_of_nodes_by_its_own_names_and_in_no_html():
    named = Node(abs, "a", "b", name="x", namespace="of")
    reason = "params:x: <b onclick=y()> -> &"
    row = StatusRow("of.x", "stale", "run", (reason,), True, None, None, False)
    event, _ = run_events([row], [named])
    assert event["node_id"] == hash_node(named)
    assert event["error"].splitlines()[1] == "params:x: &lt;b onclick=y()&gt; -&gt; &amp;"


def test_outputs_that_are_damaged_or_gone_are_made_again(project):
    table = project.folder / "data/03_primary/model_input_table.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    ran, output = project.run()
    assert ran == {"create_model_input_table_node"}, "its content is the same, so the wave stops"
    assert "output:model_input_table: its content differs from what was written" in output
    (version,) = (project.folder / "data/06_models/regressor.json").iterdir()
    (version / "regressor.json").unlink()
    version.rmdir()
    ran, _ = project.run()
    assert ran == {"split_data_node", "train_model_node"}, "what evaluation reads is as it was"


def test_a_parameter_set_back_puts_back_what_it_made(project):
    name = "conf/base/parameters_data_science.yml"
    project.edit(name, "engines, crew", "crew, engines")
    assert project.run()[0] == AFTER_TABLE
    project.edit(name, "crew, engines", "engines, crew")
    assert project.run()[0] == set()


def test_a_notebook_gets_what_the_run_returns(project):
    """From the command line nobody takes it; who calls `run` does."""
    script = """
from pathlib import Path
from kedro.framework.project import settings
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
with settings.SESSION_CLASS.create() as session:
    print("returned", sorted(session.run()))
"""
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.folder,
        env={**os.environ, "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    assert "returned ['metrics']" in told.stdout, told.stderr
    assert "Ran 2 of 8 nodes" in told.stdout, "the score, and the tables in memory that it reads"
    assert project.run()[0] == set()


def test_the_starter_is_as_it_was_written():
    """So that what the tests edit is there, once."""
    assert FILES[SCIENCE].count("weights.round(6)") == 1
    assert FILES[PROCESSING].count("# Of the list, without taxes.") == 1
