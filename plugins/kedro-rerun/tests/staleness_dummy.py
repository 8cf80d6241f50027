"""A small Kedro project in a temporary folder: what the staleness tests edit and run."""

from __future__ import annotations

import copy
import importlib
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pluggy
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from kedro_rerun import maintenance
from kedro_rerun.components import Settings
from kedro_rerun.kedro_graph import build_graph
from kedro_rerun.planning import Planner
from kedro_rerun.runner import RunOptions, StalenessRunner

NODES = ("ingest", "shard", "train", "evaluate", "report", "summary")

FILES = {
    "__init__.py": '"""A project."""\n',
    "parameters.py": '''
        """Typed parameters."""
        from dataclasses import dataclass, field

        def operational(default):
            """A field that changes no result."""
            return field(default=default, metadata={"operational": True})

        @dataclass(frozen=True)
        class Optimizer:
            lr: float = 1e-5

        @dataclass(frozen=True)
        class Ingest:
            path: str = field(metadata={"input_path": True})
            drop: tuple[str, ...] = ("#",)
            num_workers: int = operational(1)

        @dataclass(frozen=True)
        class Shard:
            width: int = 3

        @dataclass(frozen=True)
        class Train:
            optimizer: Optimizer = Optimizer()
            steps: int = 2
            log_interval: int = operational(1)

            def total(self):
                """Steps that count."""
                return self.steps * 10

        @dataclass(frozen=True)
        class Evaluate:
            shots: int = 4
    ''',
    "nodes.py": '''
        """Nodes."""
        from dummy.datasets import progress, staged
        from dummy.parameters import Evaluate, Ingest, Shard, Train

        def ingest(config: Ingest):
            """Raw lines to records."""
            from dummy.ingesting import read_lines
            folder = staged("records")
            lines = read_lines(config.path, config.drop)
            (folder / "records.txt").write_text("\\n".join(lines))
            return folder, {"kept": len(lines)}

        def shard(config: Shard, records):
            from dummy import sharding
            folder = staged("shards")
            text = (records / "records.txt").read_text()
            (folder / "shards.txt").write_text(sharding.cut(text, config.width))
            return folder

        def train(config: Train, shards):
            from dummy.training import fit
            folder = staged("model")
            weights, log = fit(config, (shards / "shards.txt").read_text(), progress("model"))
            (folder / "weights.txt").write_text(weights)
            return folder, log

        def evaluate(config: Evaluate, model, shards):
            from dummy.evaluating import score
            return score((model / "weights.txt").read_text(), config.shots)

        def report(evaluation, training_log):
            from dummy.reporting import render
            return render(evaluation, training_log)

        def summary(ingest_report):
            from dummy.common import shout
            return shout(str(ingest_report))
    ''',
    "ingesting.py": '''
        """Ingest."""
        from pathlib import Path

        from .common import tidy

        MARK = ""

        def read_lines(path, drop):
            """Reads lines."""
            # Order of the files is the order of their names.
            files = sorted(Path(path).rglob("*.txt"))
            lines = [line for file in files for line in file.read_text().splitlines()]
            return [MARK + tidy(line) for line in lines if not line.startswith(tuple(drop))]
    ''',
    "sharding.py": '''
        """Shard."""
        import dummy.common as helpers

        def cut(text, width):
            return "\\n".join(helpers.chunks(text, width))
    ''',
    "training.py": '''
        """Train."""
        import json
        import os

        from dummy.layers import Linear
        from dummy.registry import LOSSES

        def fit(config, text, work):
            model = Linear(config.optimizer.lr)
            checkpoint = work / "rows.json"
            rows = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
            for step in range(len(rows), config.total()):
                rows.append({"step": step, "loss": model.loss(step)})
                (work / "rows.tmp").write_text(json.dumps(rows))
                os.replace(work / "rows.tmp", checkpoint)
            return json.dumps([LOSSES["sum"](text), len(rows), config.optimizer.lr]), rows
    ''',
    "layers.py": '''
        """Layers."""

        class Base:
            """A layer."""

            def scale(self):
                return 2.0

        class Linear(Base):
            """A linear layer."""

            def __init__(self, lr):
                self.lr = lr

            def loss(self, step):
                """The loss."""
                return self.scale() * self.lr / (step + 1)

        class Unused:
            pass
    ''',
    "registry.py": '''
        """A table that functions enter by decorator."""

        LOSSES = {}

        def register(name):
            def decorate(function):
                LOSSES[name] = function
                return function
            return decorate

        @register("sum")
        def total(text):
            return sum(map(ord, text))
    ''',
    "evaluating.py": '''
        """Evaluate."""
        from dummy.common import tidy

        def score(weights, shots):
            return {"score": sum(map(ord, tidy(weights))) * shots}
    ''',
    "reporting.py": '''
        """Report."""
        from pathlib import Path

        def render(evaluation, log):
            template = Path(__file__).with_name("page.html").read_text()
            return template.format(score=evaluation["score"], rows=len(log))
    ''',
    "page.html": "<p>{score} {rows}</p>\n",
    "common.py": '''
        """Helpers of several stages."""

        def tidy(text):
            """Strips."""
            return text.strip()

        def chunks(text, width):
            return [text[start : start + width] for start in range(0, len(text), width)]

        def shout(text):
            return text.upper()

        def never_called():
            return 1
    ''',
    "datasets.py": '''
        """Datasets."""
        import json
        from pathlib import Path

        from kedro.io import AbstractDataset
        from kedro_rerun.artifacts import current, publish
        from kedro_rerun.context import current_context, workspace_for

        def staged(name):
            return workspace_for(name).staging

        def progress(name):
            return workspace_for(name).work

        class Folder(AbstractDataset):
            def __init__(self, *, path, kind, name):
                self._path, self._kind, self._name = Path(path), kind, name

            @property
            def root(self):
                return self._path

            def load(self):
                return current(self._path)

            def save(self, data):
                context = current_context()
                publish(
                    context.workspace(self._name),
                    kind=self._kind,
                    schema_version=1,
                    counts={},
                    provenance=context.provenance,
                )

            def _describe(self):
                return {"path": str(self._path)}

        class Report(AbstractDataset):
            def __init__(self, *, filepath, indent=1):
                self._filepath, self._indent = Path(filepath), indent

            def load(self):
                return json.loads(self._filepath.read_text())

            def save(self, data):
                self._filepath.parent.mkdir(parents=True, exist_ok=True)
                self._filepath.write_text(json.dumps(data, indent=self._indent))

            def _describe(self):
                return {"filepath": str(self._filepath)}
    ''',
    "pipeline.py": '''
        """The pipeline."""
        from kedro.pipeline import Pipeline, node

        from dummy import nodes

        def create_pipeline():
            return Pipeline([
                node(nodes.ingest, "params:ingest", ["records", "ingest_report"], name="ingest"),
                node(nodes.shard, ["params:shard", "records"], "shards", name="shard"),
                node(
                    nodes.train, ["params:train", "shards"], ["model", "training_log"],
                    name="train", tags="expensive",
                ),
                node(
                    nodes.evaluate, ["params:evaluate", "model", "shards"], "evaluation",
                    name="evaluate",
                ),
                node(nodes.report, ["evaluation", "training_log"], "report", name="report"),
                node(nodes.summary, "ingest_report", "summary", name="summary"),
            ])
    ''',
}

FOLDERS = ("records", "shards", "model")
REPORTS = (
    "ingest_report",
    "training_log",
    "evaluation",
    "report",
    "summary",
    "evaluation2",
    "evaluation3",
)


class DummyProject:
    """The project: edit its files and parameters, then run it or ask for its status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "src" / "dummy"
        self.raw = folder / "raw"
        self.data_root = folder / "data"
        self.parameters: dict[str, Any] = {
            "ingest": {"path": str(self.raw)},
            "shard": {},
            "train": {"optimizer": {"lr": 1e-5}},
            "evaluate": {},
        }
        self.catalog_options: dict[str, dict[str, Any]] = {}
        self.switches: dict[str, Any] = {}
        self.libraries = {"python": "python", "json": "pip"}
        self.library_effects: dict[str, str] = {}
        self.packages: tuple[str, ...] = ("dummy",)
        self.extra_nodes: list[Any] = []
        self.extra_datasets: dict[str, Any] = {}
        self.parameters_plain: dict[str, Any] = {}
        for name, text in FILES.items():
            self.write(name, textwrap.dedent(text).lstrip())
        (self.raw / "b").mkdir(parents=True)
        (self.raw / "a.txt").write_text("one \n# no\ntwo\n")
        (self.raw / "b" / "c.txt").write_text("three\n")

    def copy_to(self, folder: Path) -> DummyProject:
        """The same project with all that it has built, in another folder."""
        shutil.copytree(self.folder, folder)
        twin = copy.copy(self)
        twin.folder = folder
        twin.source = folder / "src" / "dummy"
        twin.raw = folder / "raw"
        twin.data_root = folder / "data"
        twin.set("ingest", path=str(twin.raw))
        return twin

    # Edits

    def write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, before: str, after: str) -> None:
        text = (self.source / name).read_text()
        assert text.count(before) >= 1, f"{name} holds no {before!r}"
        self.write(name, text.replace(before, after))

    def set(self, group: str, **values: Any) -> None:
        group_values = {**self.parameters[group], **values}
        self.parameters = {**self.parameters, group: group_values}

    # Runs

    def run(
        self, tags: list[str] | None = None, is_async: bool = False, **options: Any
    ) -> list[str]:
        """Runs the pipeline and tells which nodes really ran."""
        pipeline, catalog = self.load()
        if tags:
            pipeline = pipeline.only_nodes(*tags)
        recorder = Recorder()
        options = RunOptions(self.data_root, self.settings, **options)
        runner = StalenessRunner(lambda: options, is_async=is_async)
        runner.run(pipeline, catalog, self.hook_manager(recorder), "run")
        return recorder.ran

    @staticmethod
    def hook_manager(*hooks: Any) -> pluggy.PluginManager:
        manager = _create_hook_manager()
        for hook in hooks:
            manager.register(hook)
        return manager

    def status(self) -> dict[str, maintenance.StatusRow]:
        return {row.node: row for row in maintenance.status(self.planner())}

    def planner(self, **options: Any) -> Planner:
        pipeline, catalog = self.load()
        return Planner(build_graph(pipeline, catalog), self.data_root, self.settings, **options)

    @property
    def settings(self) -> Settings:
        return Settings(
            packages=self.packages,
            libraries=self.libraries,
            library_effects=self.library_effects,
        )

    def load(self) -> tuple[Pipeline, DataCatalog]:
        module = self.load_module("dummy.pipeline")
        pipeline = module.create_pipeline() + Pipeline(self.extra_nodes)
        return pipeline, self._catalog()

    def load_module(self, name: str) -> Any:
        """Imports the project anew, as a new process would."""
        for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "dummy"]:
            del sys.modules[loaded]
        source = str(self.source.parent)
        others = [path for path in sys.path if not (Path(path) / "dummy").is_dir()]
        sys.path[:] = [source, *others]
        sys.dont_write_bytecode = True
        importlib.invalidate_caches()
        return importlib.import_module(name)

    def _catalog(self) -> DataCatalog:
        datasets = importlib.import_module("dummy.datasets")
        typed = importlib.import_module("dummy.parameters")
        reporting = self.data_root / "08_reporting"
        catalog = DataCatalog()
        for name in FOLDERS:
            options = {"path": str(self.data_root / name), "kind": name, "name": name}
            catalog[name] = datasets.Folder(**{**options, **self.catalog_options.get(name, {})})
        for name in REPORTS:
            options = {"filepath": str(reporting / f"{name}.json")}
            catalog[name] = datasets.Report(**{**options, **self.catalog_options.get(name, {})})
        for name, values in self.parameters.items():
            values = dict(values)
            if "optimizer" in values:
                values["optimizer"] = typed.Optimizer(**values["optimizer"])
            catalog[f"params:{name}"] = getattr(typed, name.capitalize())(**values)
        for name, dataset in self.extra_datasets.items():
            catalog[name] = dataset
        for name, value in {**self.switches, **self.parameters_plain}.items():
            catalog[f"params:{name}"] = value
        return catalog


class Recorder:
    """A hook that notes which nodes run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    @hook_impl
    def before_node_run(self, node: Any) -> None:
        self.ran.append(node.name)
