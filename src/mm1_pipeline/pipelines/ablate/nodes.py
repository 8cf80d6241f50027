"""Nodes of `ablate`: arms, and what they say about the paper's lessons."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.lab import AblateConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import SFTConfig, UpcycleConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.pipelines.lab_inputs import StageParameters
from mm1_pipeline.staleness.artifacts import Artifact


def run_arms(
    config: AblateConfig,
    ingest: IngestConfig,
    tokenizer: TokenizerConfig,
    shard: ShardConfig,
    sft_shard: ShardConfig,
    model: MM1Config,
    vision_pretrain: VisionPretrainConfig,
    text_pretrain: TextPretrainConfig,
    pretrain: TrainingConfig,
    upcycle: UpcycleConfig,
    sft: SFTConfig,
    evaluate: EvaluateConfig,
) -> tuple[StagedArtifact, dict[str, Any]]:
    """Trains and evaluates every arm from every seed, each as an ordinary run."""
    from mm1_pipeline.lab.grid import place_of, resolve_arms, run_grid

    staged = stage("arms")
    parameters = StageParameters(
        ingest=ingest,
        tokenizer=tokenizer,
        shard=shard,
        sft_shard=sft_shard,
        model=model,
        vision_pretrain=vision_pretrain,
        text_pretrain=text_pretrain,
        pretrain=pretrain,
        upcycle=upcycle,
        sft=sft,
        evaluate=evaluate,
    )
    runs = resolve_arms(config.grid, parameters)
    place = place_of(staged.workspace.root, staged.work_directory, staged.directory)
    cost = run_grid(config.grid, runs, place)
    return staged.described(counts={"runs": len(runs)}), cost


def judge_arms(config: AblateConfig, arms: Artifact) -> dict[str, Any]:
    """Gives the verdict on each lesson."""
    from mm1_pipeline.lab.lessons import judge_lessons

    return judge_lessons(config, arms.path)
