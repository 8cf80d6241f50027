"""What users get wrong is refused before any node, in few lines that name the parameter."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kedro.framework.startup import bootstrap_project
from mistakes import MISTAKES, Mistake, changed, make_places
from pydantic import TypeAdapter

from mm1_pipeline.cli import cli
from mm1_pipeline.config.validation import ParameterError, check_parameters
from mm1_pipeline.preflight.checks import CHECKS, check
from mm1_pipeline.preflight.run import Run
from mm1_pipeline.training import engine

ROOT = Path(__file__).parents[2]
_MOST_LINES = 12


class Environment:
    """The parameters of an environment, read once; mistakes are made to copies."""

    def __init__(self, name: str) -> None:
        from kedro.framework.project import pipelines, settings
        from kedro.validation.type_extractor import TypeExtractor

        session = settings.SESSION_CLASS.create(ROOT, env=name)
        self.raw = session.load_context().config_loader["parameters"]
        self.pipelines = dict(pipelines)
        self.known: list[tuple[Any, Any]] = []
        self.types = TypeExtractor(self.pipelines).extract_types_from_pipelines()

    def refusals(self, raw: dict[str, Any], pipeline: str) -> list[str]:
        """What a run says, mistake by mistake."""
        known = {name: value for name, value in raw.items() if name in self.types}
        try:
            check_parameters(known, self.types)
        except ParameterError as error:
            return [str(error)]
        nodes = self.pipelines[pipeline]
        read = {name.removeprefix("params:") for name in nodes.inputs() if "params:" in name}
        groups = {name: self._typed(raw, name) for name in read}
        run = Run(frozenset(node.name for node in nodes.nodes), groups, self.known)
        return [mistake.text for mistake in check(run)]

    def _typed(self, raw: dict[str, Any], name: str) -> Any:
        value: Any = raw
        for part in name.split("."):
            value = value[part]
        return TypeAdapter(self.types[name]).validate_python(value)


@pytest.fixture(scope="module")
def smoke() -> Environment:
    bootstrap_project(ROOT)
    return Environment("smoke")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    make_places(folder)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m.path}={m.found}" for m in MISTAKES])
def test_a_mistake_is_refused_before_any_node(mistake: Mistake, smoke, places, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    texts = smoke.refusals(changed(smoke.raw, mistake.changes, places), mistake.pipeline)
    told = "\n".join(texts)
    assert texts, "it is not refused"
    assert mistake.path in told
    assert mistake.found in told
    assert any(word in told for word in ("expected", "did you mean", "missing")), told
    lines = [line for text in texts for line in textwrap.wrap(text, 80)]
    assert len(lines) <= _MOST_LINES - 2, told  # A line above them, and one below.


def test_all_mistakes_are_told_at_once(smoke):
    mistakes = {
        "ingest.sources.text.path": "no/such/place",
        "sft.num_processes": 3,
        "pretrain.num_processes": 3,
        "tokenizer.file": "no/such/tokenizer.json",
        "evaluate.tasks.sample_vqa.source": "eval_vqq",
        "sft_shard.image.size": 60,
        "shard.image.size": 64,
    }
    texts = smoke.refusals(changed(smoke.raw, mistakes, Path()), "__default__")
    for path in (*mistakes, "model.vision.image_size"):
        if path != "shard.image.size":
            assert sum(text.startswith(path) for text in texts) == 1, (path, texts)


@pytest.mark.parametrize("version", [None, "0.32.1"])
def test_a_composer_that_is_not_there_or_broken_is_refused(smoke, monkeypatch, version):
    """In every stage that trains; `auto` says nothing, as our own loop trains."""
    stages = {name: f"{name}.engine" for name in ("pretrain", "sft")}
    stages |= {name: f"{name}.training.engine" for name in ("vision_pretrain", "text_pretrain")}

    def found(name):
        assert name == "mosaicml"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    def import_composer():
        raise AttributeError("torch has no _tensor")

    monkeypatch.setattr(importlib.metadata, "version", found)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [])
    monkeypatch.setattr(engine, "_import_composer", import_composer)
    asked = changed(smoke.raw, dict.fromkeys(stages.values(), "composer"), Path())
    told = smoke.refusals(asked, "__default__")
    why = "is not installed" if version is None else "cannot be imported (AttributeError: torch has"
    assert len(told) == len(stages), told
    for path in stages.values():
        (text,) = (text for text in told if text.startswith(f"{path}: found composer, but "))
        assert why in text
        assert "Expected torch or auto" in text
    silent = changed(smoke.raw, dict.fromkeys(stages.values(), "auto"), Path())
    assert smoke.refusals(silent, "__default__") == []


@pytest.mark.parametrize(
    ("pipeline", "changes"),
    [
        ("pretrain", {"sft.num_processes": 5, "sft.device": "cuda"}),
        ("pretrain", {"evaluate.tasks.sample_vqa.source": "nowhere"}),
        ("ingest", {"tokenizer.file": "no/such/place", "pretrain.device": "cuda"}),
        ("shard", {"pretrain.mixture.streams.text.sources.txt": 1.0}),
        ("evaluate_pretrain", {"sft.device": "cuda", "upcycle.moe.every_n_layers": 5}),
        ("__default__", {"export.layout": "llava", "download.lists": "no/such/place"}),
        ("__default__", {"ablate.grid.arms.bad": {"pretrain.sedule.num_steps": 3}}),
    ],
)
def test_a_run_needs_nothing_of_other_stages(smoke, pipeline, changes):
    assert smoke.refusals(changed(smoke.raw, changes, Path()), pipeline) == []


def test_the_environment_without_a_mistake_is_not_refused(smoke):
    for pipeline in smoke.pipelines:
        expected = 1 if pipeline == "download" else 0  # Which lists no user has named yet.
        assert len(smoke.refusals(smoke.raw, pipeline)) == expected, pipeline


@pytest.mark.parametrize("name", ["base", "h100", "lab", "mm1_3b", "mm1_7b_moe"])
def test_no_environment_has_a_mistake_but_that_its_data_is_not_here(name, smoke):
    environment = Environment(name)
    environment.known = smoke.known
    for pipeline in ("__default__", "export", "ablate")[: 2 + (name == "lab")]:
        texts = environment.refusals(environment.raw, pipeline)
        assert [text for text in texts if "found nothing at" not in text] == [], pipeline


def test_every_pipeline_types_what_it_reads(smoke):
    """Kedro types parameters by the functions of the pipelines that are asked for."""
    from kedro.validation.type_extractor import TypeExtractor

    for name, pipeline in smoke.pipelines.items():
        own = TypeExtractor({name: pipeline}).extract_types_from_pipelines()
        read = {part.removeprefix("params:") for part in pipeline.inputs() if "params:" in part}
        assert {group: own.get(group) for group in read} == {
            group: smoke.types[group] for group in read
        }, name


def test_every_node_has_its_check(smoke):
    nodes = {node.name for pipeline in smoke.pipelines.values() for node in pipeline.nodes}
    assert nodes == set(CHECKS)


# The commands


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ["run", "--params=pretrain.global_batch_size=0"],
            "pretrain.global_batch_size: found 0, expected a whole number",
        ),
        (
            ["run", "--params=evaluate.tasks.sample_vqa.source=eval_vqq,pretrain.device=cuda"],
            "Found 2 mistakes before the first node, so none was run:",
        ),
        (["run", "--tags=sft", "--params=sft.num_processes=3"], "sft.num_processes: found"),
    ],
)
def test_the_command_says_it_in_few_lines_and_makes_nothing(smoke_project, command, told):
    conf = f"--conf-source={smoke_project.folder / 'conf'}"
    result = invoke(*command, "--env=smoke", conf)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "a traceback"
    assert told in result.stderr
    assert "again" not in result.stderr
    wrapped = [line for text in result.stderr.splitlines() for line in textwrap.wrap(text, 80)]
    assert len(wrapped) <= _MOST_LINES
    assert not any(smoke_project.data.glob("0*")), "a node has written something"


def test_status_shows_it_by_node(smoke_project):
    conf = f"--conf-source={smoke_project.folder / 'conf'}"
    wrong = "--params=ingest.sources.text.path=no/such/place"
    options = ("--env=smoke", conf, wrong, "--pipeline=ingest")
    rows = json.loads(invoke("mm1", "status", *options, "--json").stdout)
    found = {r["node"]: [t.partition(":")[0] for t in r["mistakes"]] for r in rows}
    assert found.pop("ingest_pretraining") == ["ingest.sources.text.path"]
    assert set(map(tuple, found.values())) == {()}


def test_an_error_of_the_project_s_own_code_is_a_text_and_with_debug_a_traceback(
    smoke_project, monkeypatch
):
    monkeypatch.setattr(
        "mm1_pipeline.preflight.checks.find_mistakes", lambda _: refuse_vocabulary()
    )
    options = ("run", "--env=smoke", f"--conf-source={smoke_project.folder / 'conf'}")
    result = invoke(*options)
    assert isinstance(result.exception, SystemExit)
    assert "tokenizer.vocab_size: found 1, expected at least 260" in result.stderr
    assert "(--debug shows where.)" in result.stderr
    assert isinstance(invoke(*options, "--debug").exception, ValueError)


def refuse_vocabulary() -> None:
    from mm1_pipeline.config.shard import TokenizerConfig
    from mm1_pipeline.streams.tokenizer import check_vocabulary

    check_vocabulary(TokenizerConfig(vocab_size=1))


@pytest.mark.parametrize("program", [["kedro"], ["mm1_pipeline"]])
def test_processes_end_in_few_lines(smoke_project, program):
    command = smoke_project.command("run", "--params=pretrain.mixture.streams.text.sources.txt=1.0")
    command[2:3] = program
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 1
    lines = [line for text in done.stderr.splitlines() for line in textwrap.wrap(text, 80)]
    assert len(lines) <= _MOST_LINES, done.stderr
    assert "pretrain.mixture.streams.text.sources.txt: found no such source" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (smoke_project.data / "03_primary").exists()
