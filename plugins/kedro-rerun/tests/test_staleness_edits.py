"""For each edit: exactly the expected nodes run again, for the expected reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from staleness_dummy import NODES, DummyProject

ALL: set[str] = set(NODES)
AFTER_TRAIN = {"train", "evaluate", "report"}


@dataclass(frozen=True)
class Edit:
    name: str
    change: Callable[[DummyProject], object]
    runs: set[str]
    reasons: dict[str, str] = field(default_factory=dict)
    """A reason that `status` must give before the run, by node."""


def go_to_b_and_back(project: DummyProject) -> None:
    project.set("shard", width=2)
    assert project.run() == ["shard", "train", "evaluate", "report"]
    project.set("shard", width=3)


def go_to_b_and_back_in_code(project: DummyProject) -> None:
    project.edit("ingesting.py", 'MARK = ""', 'MARK = ">"')
    assert project.run() == ["ingest", "shard", "train", "evaluate", "report"]
    project.edit("ingesting.py", 'MARK = ">"', 'MARK = ""')


def tamper_keeping_size_and_times(project: DummyProject) -> None:
    path = next((project.data_root / "model").glob("*/weights.txt"))
    stat = path.stat()
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def move_raw_files(project: DummyProject) -> None:
    shutil.move(project.raw, project.folder / "moved")
    project.set("ingest", path=str(project.folder / "moved"))


def report_path(project: DummyProject, name: str):
    return project.data_root / "08_reporting" / f"{name}.json"


EDITS = [
    # Parameters
    Edit("nothing", lambda p: None, set()),
    Edit(
        "a parameter of ingest",
        lambda p: p.set("ingest", drop=("#", "three")),
        ALL,
        {"ingest": 'params:ingest.drop: ["#"] -> ["#","three"]', "train": "upstream:shard: runs"},
    ),
    Edit(
        "a parameter of shard",
        lambda p: p.set("shard", width=2),
        {"shard", *AFTER_TRAIN},
        {"shard": "params:shard.width: 3 -> 2"},
    ),
    Edit(
        "a nested parameter of train",
        lambda p: p.set("train", optimizer={"lr": 2e-5}),
        AFTER_TRAIN,
        {"train": "params:train.optimizer.lr: 1e-05 -> 2e-05"},
    ),
    Edit(
        "a parameter of evaluate",
        lambda p: p.set("evaluate", shots=8),
        {"evaluate", "report"},
        {"evaluate": "params:evaluate.shots: 4 -> 8"},
    ),
    Edit("an operational field", lambda p: p.set("train", log_interval=50), set()),
    Edit("another operational field", lambda p: p.set("ingest", num_workers=8), set()),
    Edit("a default written out", lambda p: p.set("train", steps=2), set()),
    # Code
    Edit(
        "a comment",
        lambda p: p.edit("ingesting.py", "# Order of the files", "# The order"),
        set(),
    ),
    Edit("a docstring", lambda p: p.edit("layers.py", '"""The loss."""', '"""Loss."""'), set()),
    Edit(
        "blank lines and breaks", lambda p: p.edit("layers.py", "(step + 1)", "(\nstep+1)"), set()
    ),
    Edit(
        "a node's own function, same result",
        lambda p: p.edit("nodes.py", "lines = read_lines", "kept = lines = read_lines"),
        {"ingest"},
        {"ingest": "code:dummy.nodes:ingest: changed"},
    ),
    Edit(
        "a helper of one node only",
        lambda p: p.edit("common.py", "text.upper()", "text.upper() + '!'"),
        {"summary"},
        {"summary": "code:dummy.common:shout: changed"},
    ),
    Edit(
        "a helper of two nodes",
        lambda p: p.edit("common.py", "text.strip()", "text.strip(' \\n')"),
        {"ingest", "evaluate"},
        {"ingest": "code:dummy.common:tidy", "evaluate": "code:dummy.common:tidy"},
    ),
    Edit("a helper of no node", lambda p: p.edit("common.py", "return 1", "return 2"), set()),
    Edit(
        "a helper that is imported lazily",
        lambda p: p.edit("sharding.py", "return", "return '' +"),
        {"shard"},
        {"shard": "code:dummy.sharding:cut: changed"},
    ),
    Edit(
        "a module constant",
        lambda p: p.edit("ingesting.py", 'MARK = ""', 'MARK = ">"'),
        ALL - {"summary"},
        {"ingest": "code:dummy.ingesting:MARK: changed"},
    ),
    Edit(
        "a method of an inherited class",
        lambda p: p.edit("layers.py", "return 2.0", "return 4.0"),
        {"train", "report"},
        {"train": "code:dummy.layers:Base: changed"},
    ),
    Edit("a class of no node", lambda p: p.edit("layers.py", "pass", "x = 1"), set()),
    Edit(
        "a method of a parameter class",
        lambda p: p.edit("parameters.py", "self.steps * 10", "self.steps * 20"),
        AFTER_TRAIN,
        {"train": "code:dummy.parameters:Train: changed"},
    ),
    Edit(
        "the default of an operational field",
        lambda p: p.edit(
            "parameters.py",
            "log_interval: int = operational(1)",
            "log_interval: int = operational(5)",
        ),
        set(),
    ),
    Edit(
        "a function that a decorator registers",
        lambda p: p.edit("registry.py", "sum(map(ord, text))", "max(map(ord, text))"),
        AFTER_TRAIN,
        {"train": "code:dummy.registry:total: changed"},
    ),
    Edit(
        "a template beside the code",
        lambda p: p.edit("page.html", "<p>", "<div>"),
        {"report"},
        {"report": "code:dummy.reporting:page.html: changed"},
    ),
    Edit(
        "a new module that nobody calls",
        lambda p: p.write("extra.py", "VALUE = 1\n"),
        set(),
    ),
    Edit(
        "an import that does something",
        lambda p: p.edit("training.py", "import json", "import json\nprint('loaded')"),
        {"train"},
        {"train": "code:dummy.training:<import>: new"},
    ),
    Edit(
        "a decorator around a helper",
        lambda p: p.edit(
            "evaluating.py", "def score", "import functools\n@functools.cache\ndef score"
        ),
        {"evaluate"},
        {"evaluate": "code:dummy.evaluating:score: changed"},
    ),
    Edit(
        "which dataset is which argument",
        lambda p: (
            p.edit(
                "pipeline.py",
                '["evaluation", "training_log"], "report"',
                '{"evaluation": "evaluation", "log": "training_log"}, "report"',
            )
            or p.edit(
                "nodes.py", "def report(evaluation, training_log)", "def report(evaluation, log)"
            )
            or p.edit("nodes.py", "render(evaluation, training_log)", "render(evaluation, log)")
        ),
        {"report"},
        {"report": "wiring:inputs: "},
    ),
    # Raw files
    Edit(
        "a raw file's content",
        lambda p: (p.raw / "a.txt").write_text("one\ntwo\nfour\n"),
        ALL,
        {"ingest": "input:ingest.path: changed"},
    ),
    Edit(
        "a raw file's content that ingest drops",
        lambda p: (p.raw / "a.txt").write_text("one \n# nothing\ntwo\n"),
        {"ingest"},
        {"ingest": "input:ingest.path: changed", "shard": "upstream:ingest: runs first"},
    ),
    Edit("a raw file's time only", lambda p: os.utime(p.raw / "a.txt", (1, 1)), set()),
    Edit(
        "a raw file more",
        lambda p: (p.raw / "b" / "d.txt").write_text("four\n"),
        ALL,
        {"ingest": "input:ingest.path: changed"},
    ),
    Edit(
        "a raw file's name",
        lambda p: (p.raw / "a.txt").rename(p.raw / "aa.txt"),
        {"ingest"},
        {"ingest": "input:ingest.path: changed"},
    ),
    Edit("the folder of the raw files", move_raw_files, set()),
    # Catalog
    Edit(
        "the path of a report",
        lambda p: p.catalog_options.update(evaluation={"filepath": str(p.data_root / "e.json")}),
        {"evaluate"},
        {"evaluate": "output:evaluation: missing"},
    ),
    Edit(
        "the path of an artifact",
        lambda p: p.catalog_options.update(shards={"path": str(p.data_root / "elsewhere")}),
        {"shard"},
        {"shard": "output:shards: missing"},
    ),
    Edit(
        "how a report is written",
        lambda p: p.catalog_options.update(evaluation={"indent": 2}),
        {"evaluate", "report"},
        {"evaluate": "catalog:evaluation.indent: 1 -> 2"},
    ),
    # Libraries
    Edit(
        "the version of a library that some nodes use",
        lambda p: p.libraries.update(json="pytest"),
        ALL - {"shard"},
        {"train": "library:json: "},
    ),
    Edit("a library that no node uses", lambda p: p.libraries.update(torch="torch"), set()),
    # Outputs
    Edit(
        "deletion of a report",
        lambda p: report_path(p, "report").unlink(),
        {"report"},
        {"report": "output:report: missing"},
    ),
    Edit(
        "deletion of an artifact",
        lambda p: shutil.rmtree(p.data_root / "shards"),
        {"shard"},
        {"shard": "output:shards: missing"},
    ),
    Edit(
        "deletion of one file of an artifact",
        lambda p: next((p.data_root / "shards").glob("*/shards.txt")).unlink(),
        {"shard"},
        {"shard": "output:shards: shards.txt: missing."},
    ),
    Edit(
        "tampering with an artifact",
        tamper_keeping_size_and_times,
        {"train"},
        {"train": "output:model: weights.txt: its content differs from what was published."},
    ),
    Edit(
        "tampering with a report",
        lambda p: report_path(p, "evaluation").write_text('{"score": 1000000}'),
        {"evaluate"},
        {"evaluate": "output:evaluation: its content differs from what was written"},
    ),
    Edit(
        "an output's time only",
        lambda p: os.utime(report_path(p, "evaluation"), (1, 1)),
        set(),
    ),
    Edit(
        "the pointer of an artifact",
        lambda p: (p.data_root / "model" / "CURRENT").write_text("0" * 12 + "\n"),
        set(),
    ),
    # Back again
    Edit("A -> B -> A in parameters", go_to_b_and_back, set()),
    Edit("A -> B -> A in code", go_to_b_and_back_in_code, set()),
    Edit(
        "loss of all records",
        lambda p: shutil.rmtree(p.data_root / ".staleness"),
        ALL,
        {"train": "no record of a run"},
    ),
]


@pytest.fixture
def project(tmp_path) -> DummyProject:
    project = DummyProject(tmp_path)
    project.switches["allow_expensive"] = True
    assert set(project.run()) == ALL
    assert project.run() == []
    return project


def read_outputs(project: DummyProject) -> dict[str, str]:
    """Content of everything that is current."""
    found = {}
    for path in sorted((project.data_root / "08_reporting").glob("*.json")):
        found[path.name] = path.read_text()
    for name in ("records", "shards", "model"):
        root = project.data_root / name
        current = (root / "CURRENT").read_text().strip()
        found |= {
            f"{name}/{path.name}": path.read_text()
            for path in (root / current).iterdir()
            if path.name != "manifest.json"
        }
    return found


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_exactly_the_touched_nodes_run_again(project, edit):
    edit.change(project)
    status = project.status()
    for node, reason in edit.reasons.items():
        assert any(text.startswith(reason) for text in status[node].reasons), status[node]
    predicted = {node for node, row in status.items() if row.action == "run" and row.certain}
    assert set(project.run()) == edit.runs
    assert predicted <= edit.runs
    assert project.run() == []
    assert all(row.state == "fresh" for row in project.status().values())


def test_there_are_at_least_25_edits():
    assert len({edit.name for edit in EDITS}) >= 25


def test_going_back_brings_the_earlier_outputs_back(project):
    before = read_outputs(project)
    go_to_b_and_back(project)
    assert read_outputs(project) != before
    assert project.run() == []
    assert read_outputs(project) == before
