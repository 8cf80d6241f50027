"""What a grid of the lab is given, and how its node runs it.

A grid depends on the code of every stage that its runs go through. Their pipelines are put
together here, so that whoever follows this code, as staleness does, reaches all of it.
"""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast, get_type_hints

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.lab import Goal, GridConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import SFTConfig, SFTStart, UpcycleConfig
from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

    from mm1_pipeline.lab.grid import ArmRun
    from mm1_pipeline.lab.identity import RunScopes, Scope


F = TypeVar("F", bound=Callable[..., Any])


class StageParameters(TypedDict):
    """Parameter groups by name, in the order of the stages."""

    ingest: IngestConfig
    synthesis: SynthesisConfig
    tokenizer: TokenizerConfig
    shard: ShardConfig
    sft_shard: ShardConfig
    model: MM1Config
    vision_pretrain: VisionPretrainConfig
    text_pretrain: TextPretrainConfig
    pretrain: TrainingConfig
    upcycle: UpcycleConfig
    sft: SFTConfig
    evaluate: EvaluateConfig


INPUTS = [f"params:{name}" for name in StageParameters.__annotations__]
"""As inputs of a node."""

_BEFORE_PRETRAINING = {"ingest", "synthesize", "shard", "vision_pretrain", "text_pretrain"}
"""Tags of the nodes whose outputs many arms share."""

_NARROWER = {("index_evaluation", "params:evaluate"): "params:evaluate.benchmark_part"}
"""What a node reads of a group, where all of it would part runs that do the same: other questions
to a model are no other pre-training. As `narrowed` says it at the node."""


def reads_stages(run: F) -> F:
    """Names `INPUTS` and their classes as arguments of a function that takes any number.

    Kedro types parameters by the functions of the pipelines that are asked for, and by nothing
    else: without that a grid that runs alone would get plain dictionaries.

    Args:
        run: A grid's node, `(config, *groups)`.
    """
    classes = get_type_hints(StageParameters)
    config, _ = inspect.signature(run).parameters.values()
    stages = [inspect.Parameter(name, config.kind, annotation=cls) for name, cls in classes.items()]
    run.__annotations__.update(classes)
    run.__signature__ = inspect.signature(run).replace(parameters=[config, *stages])  # pyright: ignore[reportFunctionMemberAccess]
    return run


def grid_pipeline(
    goal: str,
    results: str,
    run: Callable[..., Any],
    judge: Callable[..., Any],
    verdict: str,
    report: Callable[..., Any],
    reported: list[str],
) -> Pipeline:
    """Parameters of every stage -> results of a grid's runs -> verdict -> a page.

    Args:
        goal: Name of the pipeline and of its parameters.
        results: Artifact of the runs; `<results>_cost` says what they cost.
        run: Gives both; gets the goal's parameters and those of `INPUTS`.
        judge: Gives the verdict out of the goal's parameters and the results.
        verdict: Its name; `<verdict>_report` is the page.
        report: Gives the page.
        reported: What it shows.
    """
    from kedro.pipeline import Pipeline, node

    parameters = f"params:{goal}"
    written = [results, f"{results}_cost"]
    return Pipeline(
        [
            node(run, [parameters, *INPUTS], written, name=run.__name__),
            node(judge, [parameters, results], verdict, name=judge.__name__),
            node(report, reported, f"{verdict}_report", name=report.__name__),
        ],
        tags=goal,
    )


def run_stages(
    output: str, grid: GridConfig, groups: Sequence[Any]
) -> tuple[StagedArtifact, dict[str, Any]]:
    """Runs every arm of a grid; all of a grid's node but its parameters.

    Args:
        output: Name of the artifact that gets the results.
        grid: Arms and seeds.
        groups: The environment's parameters, in the order of `StageParameters`.

    Returns:
        The staged results, and what each run cost.
    """
    from mm1_pipeline.lab.execution import Place, plan_runs, run_grid
    from mm1_pipeline.lab.grid import resolve_arms
    from mm1_pipeline.lab.identity import IdentityReader

    names = StageParameters.__annotations__
    parameters = cast(StageParameters, dict(zip(names, groups, strict=True)))
    staged = stage(output)
    data = staged.workspace.root.parent / "arms_data"
    runs = resolve_arms(grid, parameters)
    planned = plan_runs(runs, ScopeReader(), IdentityReader(data / "hashes.json"))
    place = Place(
        Path.cwd(), data, staged.directory, _about(), scopes_of=lambda run: ScopeReader()(run)
    )
    cost = run_grid(grid, planned, place)
    return staged.described(counts={"runs": len(planned)}), cost


class ScopeReader:
    """Tells the parts of a run: nodes, what parameters they read, what code they reach."""

    def __init__(self) -> None:
        from kedro.framework.project import settings
        from kedro_rerun.code import CodeIndex

        declared = settings.SESSION_CLASS.staleness_settings
        self._index = CodeIndex(declared.packages, declared.excluded)
        self._scopes: dict[tuple[Goal, SFTStart], RunScopes] = {}

    def __call__(self, run: ArmRun) -> RunScopes:
        """The parts of a run, by its goal and what its fine-tuning starts from."""
        from mm1_pipeline.lab.identity import RunScopes

        start = run.groups["sft"].init_from if "sft" in run.groups else SFTStart.PRETRAIN
        key = (run.goal, start)
        if key not in self._scopes:
            whole = goal_pipeline(run.goal, start)
            prepared = whole.filter(node_names=_names_before_pretraining(whole))
            pretrained = whole.to_nodes("pretrain_model")
            parts = (self._scope(part) for part in (prepared, pretrained, whole))
            self._scopes[key] = RunScopes(*parts)
        return self._scopes[key]

    def _scope(self, pipeline: Pipeline) -> Scope:
        from kedro_rerun.functions import describe_function

        from mm1_pipeline.ground.files import hash_json
        from mm1_pipeline.lab.identity import Scope

        entries = [
            entry for node in pipeline.nodes for entry in describe_function(node.func).entries
        ]
        read = {
            _NARROWER.get((node.name, name), name)
            for node in pipeline.nodes
            for name in node.inputs
        }
        groups = sorted(name.removeprefix("params:") for name in read if name.startswith("params:"))
        code = hash_json(dict(self._index.closure(entries).parts))
        return Scope(tuple(node.name for node in pipeline.nodes), tuple(groups), code)


def goal_pipeline(goal: Goal, start: SFTStart = SFTStart.PRETRAIN) -> Pipeline:
    """A goal with everything before it, as the registry makes it.

    Args:
        goal: What arms are trained for: decides which stages a run has.
        start: What fine-tuning starts from.
    """
    from mm1_pipeline.pipelines.evaluate.pipeline import create_pipeline as evaluate
    from mm1_pipeline.pipelines.ingest.pipeline import create_pipeline as ingest
    from mm1_pipeline.pipelines.pretrain.pipeline import create_pipeline as pretrain
    from mm1_pipeline.pipelines.sft.pipeline import create_pipeline as sft
    from mm1_pipeline.pipelines.shard.pipeline import create_pipeline as shard
    from mm1_pipeline.pipelines.synthesize.pipeline import create_pipeline as synthesize
    from mm1_pipeline.pipelines.text_pretrain.pipeline import create_pipeline as text_pretrain
    from mm1_pipeline.pipelines.upcycle.pipeline import create_pipeline as upcycle
    from mm1_pipeline.pipelines.vision_pretrain.pipeline import create_pipeline as vision_pretrain

    makers = (ingest, synthesize, shard, vision_pretrain, text_pretrain, pretrain, upcycle)
    last = evaluate(goal.value)
    stages = sum((make() for make in makers), last + sft(start))
    return stages.to_nodes(*(node.name for node in last.nodes))


def _names_before_pretraining(pipeline: Pipeline) -> list[str]:
    return [node.name for node in pipeline.nodes if node.tags & _BEFORE_PRETRAINING]


def _about() -> dict[str, Any]:
    """Who makes the runs: commit and device."""
    import torch
    from kedro_rerun.context import current_context

    context = current_context()
    provenance = dict(context.provenance) if context else {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "commit": provenance.get("commit_sha"),
        "dirty": is_edited(Path.cwd(), "src", "conf"),
        "device": device,
        "torch": torch.__version__,
    }


def is_edited(project: Path, *folders: str) -> bool | None:
    """Whether anything in some folders differs from the commit; None where git cannot tell.

    The rest of the project does not count: a store inside it grows with every run.
    """
    command = ["git", "status", "--porcelain", "--", *folders]
    try:
        told = subprocess.run(command, cwd=project, capture_output=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return bool(told.stdout.strip())
