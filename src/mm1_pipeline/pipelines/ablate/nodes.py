"""Nodes of `ablate`: arms, and what they say about the paper's lessons."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.lab import AblateConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import SFTConfig, UpcycleConfig
from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.lab_inputs import StageParameters, run_stages


def run_arms(
    config: AblateConfig,
    ingest: IngestConfig,
    synthesis: SynthesisConfig,
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
    parameters = StageParameters(
        ingest=ingest,
        synthesis=synthesis,
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
    return run_stages("arms", config.grid, parameters)


def judge_arms(config: AblateConfig, arms: Artifact) -> dict[str, Any]:
    """Gives the verdict on each lesson."""
    from mm1_pipeline.lab.lessons import judge_lessons

    return judge_lessons(config, arms.path)


def report_lessons(lessons: dict[str, Any], arms_cost: dict[str, Any]) -> str:
    """Shows every lesson with its verdict, differences, cost and the paper's figure."""
    from mm1_pipeline.reporting.lessons import render_lessons

    return render_lessons(lessons, arms_cost)
