"""What Kedro-Viz shows of the pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from kedro.framework.startup import bootstrap_project

from mm1_pipeline.pipelines.boxes import BOXES, in_boxes
from mm1_pipeline.viz import remove_paths

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def default():
    bootstrap_project(ROOT)
    from kedro.framework.project import pipelines

    return pipelines["__default__"]


def test_at_first_sight_there_are_at_most_25_boxes(default):
    modular = pytest.importorskip("kedro_viz.data_access.repositories.modular_pipelines")
    tree = modular.ModularPipelinesRepository()
    tree.populate_tree(in_boxes(default))
    seen = {child.id for child in tree.as_dict()["__root__"].children} - tree.parameters
    assert set(BOXES) <= seen
    assert len(seen) <= 25
    stages = {name for name in tree.as_dict() if "." in name}
    assert stages == {f"{box}.{stage}" for box, names in BOXES.items() for stage in names}


def test_boxes_change_no_name_and_nothing_that_a_status_is_shown_by(default):
    boxed = in_boxes(default).nodes
    assert {node.name for node in boxed} == {node.name for node in default.nodes}
    assert {str(node) for node in boxed} == {str(node) for node in default.nodes}
    assert all(node.namespace for node in boxed)


def test_the_static_site_holds_no_path_of_the_machine(tmp_path):
    project, data = tmp_path / "me" / "mm1-pipeline", tmp_path / "me" / "mm1-pipeline-data"
    elsewhere = "/mnt/disk7/secret/report.html"
    answers = {
        "main": {"nodes": [{"name": "a", "code": f'open("{project}/conf/base")'}]},
        "nodes/1": {"filepath": f"{data}/08_reporting/report.html", "preview": f"<p>{project}</p>"},
        "nodes/2": {"filepath": elsewhere, "parameters": {"path": f"{Path.home()}/raw"}},
        "nodes/3": {"filepath": f"{project}/src/a.py", "preview": f"{project}-not and/or 1/2"},
    }
    for name, content in answers.items():
        path = tmp_path / "build" / "api" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    remove_paths(tmp_path / "build", {data: "data_root", project: "."})
    found = {n: json.loads((tmp_path / "build" / "api" / n).read_text()) for n in answers}
    assert found["main"]["nodes"] == [{"name": "a", "code": 'open("./conf/base")'}]
    assert found["nodes/1"] == {
        "filepath": "data_root/08_reporting/report.html",
        "preview": "<p>.</p>",
    }
    assert found["nodes/2"] == {"filepath": "report.html", "parameters": {"path": "~/raw"}}
    assert found["nodes/3"]["filepath"] == "./src/a.py"
    assert found["nodes/3"]["preview"].endswith("-not and/or 1/2"), "another folder's name"
    assert not any(str(Path.home()) + os.sep in json.dumps(answer) for answer in found.values())
