"""The project as Kedro sees it: environments, catalogue, registry."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogProtocol

from mm1_pipeline.settings import SESSION_CLASS

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = sorted(
    path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "local"
)


@pytest.fixture(scope="module", autouse=True)
def project():
    bootstrap_project(ROOT)


class Opened(NamedTuple):
    params: Mapping[str, Any]
    catalog: CatalogProtocol


@functools.cache
def open_context(environment: str) -> Opened:
    """Only looked at, so that one will do for all tests.

    The catalogue is made at once: resolvers of globals are the process's, so that later it would
    be resolved by the globals of the environment that was opened last.
    """
    context = KedroSession.create(ROOT, env=environment).load_context()
    return Opened(context.params, context.catalog)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environment_resolves_into_typed_parameters(environment):
    context = open_context(environment)
    for name in (
        "download",
        "ingest",
        "synthesis",
        "tokenizer",
        "shard",
        "sft_shard",
        "model",
        "vision_pretrain",
        "text_pretrain",
        "pretrain",
        "upcycle",
        "sft",
        "evaluate",
        "report",
        "export",
    ):
        assert not isinstance(context.params[name], dict), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_catalogue_entry_is_used_and_everything_between_stages_is_on_disk(environment):
    from kedro.framework.project import pipelines

    catalog = open_context(environment).catalog
    read_or_written = set().union(*(pipeline.datasets() for pipeline in pipelines.values()))
    used = {name for name in read_or_written if not name.startswith("param")}
    entries = {name for name in catalog.keys() if not name.startswith("param")}  # noqa: SIM118
    assert used == entries


def test_environments_do_not_share_artifacts():
    roots = {}
    for environment in ENVIRONMENTS:
        catalog = open_context(environment).catalog
        roots[environment] = {str(catalog[n]._describe()) for n in ("records", "evaluation")}
    for one in ENVIRONMENTS:
        for other in ENVIRONMENTS:
            assert one == other or not roots[one] & roots[other]


def test_model_and_shards_agree_in_every_environment():
    for environment in ENVIRONMENTS:
        params = open_context(environment).params
        assert params["model"].connector.num_tokens == params["shard"].packing.image_tokens
        assert params["model"].vision.image_size == params["shard"].image.size
        assert params["model"].connector.num_tokens == params["sft_shard"].packing.image_tokens
        assert params["model"].decoder.vocab_size == params["tokenizer"].vocab_size


INGESTED = {"ingest_evaluation", "index_evaluation", "ingest_pretraining"}
SHARDED = {*INGESTED, "synthesize_captions", "prepare_tokenizer", "pack_shards"}


@pytest.mark.parametrize(
    ("goal", "nodes"),
    [
        ("ingest", {*INGESTED, "ingest_conversations", "report_sources"}),
        (
            "shard",
            SHARDED | {"ingest_conversations", "pack_conversations"},
        ),
        (
            "vision_pretrain",
            SHARDED | {"plan_vision_mixture", "pretrain_vision", "evaluate_vision"},
        ),
        (
            "text_pretrain",
            SHARDED | {"plan_text_mixture", "pretrain_text"},
        ),
        (
            "pretrain",
            {
                *SHARDED,
                "plan_vision_mixture",
                "pretrain_vision",
                "plan_text_mixture",
                "pretrain_text",
                "plan_mixture",
                "pretrain_model",
            },
        ),
    ],
)
def test_goal_holds_what_it_needs_and_nothing_else(goal, nodes):
    from kedro.framework.project import pipelines

    assert {node.name for node in pipelines[goal].nodes} == nodes


def test_fine_tuning_depends_on_the_model_that_it_starts_from_alone():
    from kedro.framework.project import pipelines

    from mm1_pipeline.config.wiring import choose_edges

    def wire(parameters: dict) -> None:
        if choose_edges(parameters):
            pipelines.configure("mm1_pipeline.pipeline_registry")

    def nodes() -> set[str]:
        return {node.name for node in pipelines["sft"].nodes}

    needed = SHARDED | {"ingest_conversations", "pack_conversations"}
    needed |= {"plan_vision_mixture", "plan_text_mixture", "pretrain_vision", "pretrain_text"}
    needed |= {"plan_mixture", "pretrain_model", "fine_tune"}
    try:
        wire({"sft": {"init_from": "pretrain"}})
        assert nodes() == needed
        wire({"sft": {"init_from": "upcycle"}})
        assert nodes() == needed | {"train_experts"}
        wire({"sft": {"init_from": "no such stage"}})
        assert nodes() == needed
    finally:
        wire({})


def test_every_node_carries_the_tag_of_its_stage():
    from kedro.framework.project import pipelines
    from kedro.pipeline import Pipeline

    stages = set(pipelines) - {"__default__"}
    for node in sum(pipelines.values(), Pipeline([])).nodes:
        assert len(node.tags & stages) == 1, node.name


def test_export_is_a_goal_outside_the_default_run():
    from kedro.framework.project import pipelines

    names = {node.name for node in pipelines["export"].nodes}
    exports = {"export_pretrained", "export_upcycled", "export_fine_tuned"}
    assert {*exports, "pretrain_model", "ingest_pretraining"} <= names
    assert "evaluate_models" not in names
    assert not exports & {node.name for node in pipelines["__default__"].nodes}


def test_registry_imports_no_heavy_library():
    code = (
        "import sys\n"
        "from mm1_pipeline.pipeline_registry import register_pipelines\n"
        "register_pipelines()\n"
        "heavy = {'torch', 'composer', 'streaming', 'daft', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_parts_of_the_model_are_parameters_of_their_own(environment):
    """So that another decoder leaves the encoder fresh, and the reverse."""
    context = open_context(environment)
    for part in ("vision", "decoder"):
        value = context.catalog.load(f"params:model.{part}")
        assert value == getattr(context.params["model"], part)
        assert not isinstance(value, dict)


def test_no_node_depends_on_all_of_the_code():
    """As one does from which an import is reached whose module a value names."""
    from kedro.framework.project import pipelines
    from kedro_rerun.code import CodeIndex
    from kedro_rerun.functions import describe_function

    declared = SESSION_CLASS.staleness_settings
    index = CodeIndex(declared.packages, declared.excluded)
    functions = {node.name: node.func for pipeline in pipelines.values() for node in pipeline.nodes}
    for name, function in functions.items():
        code = index.closure(describe_function(function).entries).parts
        reached = {part.partition(":")[0] for part in code}
        assert not {"mm1_pipeline.chat_page", "mm1_pipeline.cli"} & reached, name


def test_parameters_are_resolved_once_in_a_session(monkeypatch):
    read, original = [], OmegaConfigLoader._read_raw_config

    def counted(loader, key):
        read.append(key)
        return original(loader, key)

    monkeypatch.setattr(OmegaConfigLoader, "_read_raw_config", counted)
    for rate in (1e-3, 2e-3):
        read.clear()
        given = {"pretrain": {"optimizer": {"learning_rate": rate}}}
        session = KedroSession.create(ROOT, env="smoke", runtime_params=given)
        context = session.load_context()
        assert context.params["pretrain"].optimizer.learning_rate == rate
        assert context.catalog.load("params:pretrain").optimizer.learning_rate == rate
        assert read.count("parameters") == 1
