"""The toy as a Kedro project, whose commands are given in it."""

from __future__ import annotations

from pathlib import Path

from staleness_dummy import DummyProject

PYPROJECT = """
[tool.kedro]
package_name = "dummy"
project_name = "dummy"
kedro_init_version = "1.7.0"
source_dir = "src"

[tool.kedro_telemetry]
consent = false
"""
SETTINGS = """
from kedro_rerun import StalenessSession

SESSION_CLASS = StalenessSession
CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "base"}
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-viz", "kedro-telemetry")
"""
REGISTRY = """
from dummy.pipeline import create_pipeline

def register_pipelines():
    whole = create_pipeline()
    return {"__default__": whole, "train": whole.to_nodes("train")}
"""
CATALOG = """
{name}:
  type: dummy.datasets.Folder
  path: ${{globals:data_root}}/{name}
  kind: {name}
  name: {name}
"""
REPORT = """
{name}:
  type: dummy.datasets.Report
  filepath: ${{globals:data_root}}/08_reporting/{name}.json
"""
PARAMETERS = "ingest: {path: raw}\nshard: {width: 3}\ntrain: {steps: 2}\nevaluate: {shots: 4}\n"


def make_kedro_project(folder: Path) -> Path:
    """The toy with configuration: `kedro run` works in it."""
    dummy = DummyProject(folder)
    dummy.edit(
        "parameters.py",
        "optimizer: Optimizer = Optimizer()",
        "optimizer: Optimizer = field(default_factory=Optimizer)",
    )
    dummy.write("settings.py", SETTINGS)
    dummy.write("pipeline_registry.py", REGISTRY)
    conf = folder / "conf" / "base"
    conf.mkdir(parents=True)
    folders = "".join(CATALOG.format(name=name) for name in ("records", "shards", "model"))
    reports = ("ingest_report", "training_log", "evaluation", "report", "summary")
    (conf / "catalog.yml").write_text(
        folders + "".join(REPORT.format(name=name) for name in reports)
    )
    (conf / "globals.yml").write_text("data_root: data/base\n")
    (conf / "parameters.yml").write_text(PARAMETERS)
    other = folder / "conf" / "other"
    other.mkdir()
    (other / "globals.yml").write_text("data_root: data/other\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder
