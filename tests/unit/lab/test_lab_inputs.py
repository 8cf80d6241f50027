"""What a grid's node depends on: the stages that its runs go through, with their code."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro_rerun.code import CodeIndex
from kedro_rerun.functions import describe_function

from mm1_pipeline.config.lab import Goal
from mm1_pipeline.config.stages import SFTStart
from mm1_pipeline.config.wiring import sft_start
from mm1_pipeline.lab.grid import learning_rate_grid, resolve_arms
from mm1_pipeline.pipelines.ablate.nodes import run_arms
from mm1_pipeline.pipelines.lab_inputs import (
    ScopeReader,
    StageParameters,
    goal_pipeline,
    is_edited,
)
from mm1_pipeline.pipelines.lr_law.nodes import run_rates
from mm1_pipeline.pipelines.upcycle.pipeline import create_pipeline as upcycle
from mm1_pipeline.settings import SESSION_CLASS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scopes():
    bootstrap_project(ROOT)
    reader = ScopeReader()
    return {
        goal: reader(SimpleNamespace(goal=goal, groups={}))  # pyright: ignore[reportArgumentType]
        for goal in Goal
    }


@pytest.fixture(scope="module")
def index():
    declared = SESSION_CLASS.staleness_settings
    return CodeIndex(declared.packages, declared.excluded)


@pytest.mark.parametrize("goal", Goal)
def test_a_goal_is_the_registered_pipeline(goal):
    from mm1_pipeline.pipeline_registry import register_pipelines

    registered = register_pipelines()[goal.value]
    # Where fine-tuning starts is a parameter of the session, which another test may have left.
    made = goal_pipeline(goal, sft_start())
    assert {n.name for n in made.nodes} == {n.name for n in registered.nodes}


def test_fine_tuning_may_start_from_the_mixture_of_experts():
    nodes = {node.name: node for node in goal_pipeline(Goal.EVALUATE, SFTStart.UPCYCLE).nodes}
    assert "upcycled_model" in nodes["fine_tune"].inputs


def test_the_parts_of_a_run(scopes):
    parts = scopes[Goal.EVALUATE_PRETRAIN]
    assert set(parts.prepared.nodes) < set(parts.pretrained.nodes) < set(parts.whole.nodes)
    assert {"pack_shards", "pretrain_vision", "pretrain_text"} <= set(parts.prepared.nodes)
    assert "pretrain_model" in set(parts.pretrained.nodes) - set(parts.prepared.nodes)
    assert "fine_tune" not in parts.whole.nodes
    # Another fine-tuning, or other questions, is no other pre-training.
    assert not {"sft", "sft_shard", "evaluate"} & set(parts.pretrained.groups)
    assert "evaluate.benchmark_part" in parts.pretrained.groups, "but what must not be learnt is"
    assert "evaluate" in parts.whole.groups
    codes = {parts.prepared.code, parts.pretrained.code, parts.whole.code}
    assert len(codes) == 3


def test_fine_tuning_alone_builds_no_mixture_of_experts(scopes):
    nodes = set(scopes[Goal.EVALUATE_SFT].whole.nodes)
    assert {"fine_tune", "pack_conversations", "pretrain_model"} <= nodes
    assert not {node.name for node in upcycle().nodes} & nodes
    assert "sft" not in scopes[Goal.EVALUATE_SFT].pretrained.groups
    # Whoever fine-tunes finds the pre-training of whoever does not.
    assert scopes[Goal.EVALUATE_SFT].pretrained == scopes[Goal.EVALUATE_PRETRAIN].pretrained


def test_every_group_that_a_run_reads_is_an_input_of_the_grid(scopes):
    for parts in scopes.values():
        groups = {group.partition(".")[0] for group in parts.whole.groups}
        assert groups <= set(StageParameters.__annotations__)


@pytest.mark.parametrize("function", [run_arms, run_rates])
def test_a_grid_sees_the_code_of_its_stages_and_of_no_other(function, index):
    code = index.closure(describe_function(function).entries).parts
    reached = {name.partition(":")[0] for name in code}
    for module in ("models.decoder", "training.train", "streams.packing", "corpus.ingest",
                   "evaluation.scoring.metrics", "evaluation.scoring.scoring"):  # fmt: skip
        assert f"mm1_pipeline.{module}" in reached, module
    for module in ("reporting.page", "export.code", "corpus.download"):
        assert not any(name.startswith(f"mm1_pipeline.{module}") for name in reached), module


def test_every_arm_of_the_lab_can_be_used():
    bootstrap_project(ROOT)
    params = KedroSession.create(ROOT, env="lab").load_context().params
    groups = {name: params[name] for name in StageParameters.__annotations__}
    runs = resolve_arms(params["ablate"].grid, groups)
    grid = params["ablate"].grid
    assert len(runs) == sum(len(grid.seeds_of(arm)) for arm in grid.arms)
    assert resolve_arms(learning_rate_grid(params["lr_law"]), groups)
    # Every lesson counts what its arms are asked.
    goals = {run.arm: run.goal for run in runs}
    tasks = {**params["evaluate"].tasks, **params["evaluate"].text_tasks}
    for name, lesson in params["ablate"].lessons.items():
        model = lesson.model or params["ablate"].grid.model
        for arm in (lesson.first, lesson.second):
            assert (goals[arm] == Goal.EVALUATE_PRETRAIN) == (model == "pretrain"), name
        for task, shots in (*lesson.scores.items(), *lesson.second_scores.items()):
            asked = getattr(tasks[task], "shots", (0,))
            assert set(shots) <= set(asked), (name, task)


def test_only_code_and_configuration_make_a_project_edited(tmp_path):
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert is_edited(tmp_path, "src") is None
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "store").write_text("a result")
    assert is_edited(tmp_path, "src") is False
    (tmp_path / "src" / "a.py").write_text("2")
    assert is_edited(tmp_path, "src") is True
