"""Nodes of `lr_law`: runs of several sizes and rates, and the line through their best."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.lab import LrLawConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import SFTConfig, UpcycleConfig
from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.datasets.artifact import StagedArtifact
from mm1_pipeline.pipelines.lab_inputs import StageParameters, run_stages


def run_rates(
    config: LrLawConfig,
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
    """Trains every size at every rate, each as an ordinary run."""
    from mm1_pipeline.lab.lessons import learning_rate_grid

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
    return run_stages("rates", learning_rate_grid(config), parameters)


def fit_rates(config: LrLawConfig, rates: Artifact) -> dict[str, Any]:
    """Fits the law."""
    from mm1_pipeline.lab.lessons import learning_rate_grid, read_runs
    from mm1_pipeline.lab.lr_law import fit_law

    runs = read_runs(config, learning_rate_grid(config), rates.path)
    return fit_law(config.fit, runs).as_json()


def report_law(lr_law: dict[str, Any]) -> str:
    """Shows the law beside the paper's."""
    from mm1_pipeline.reporting.lessons import render_law

    return render_law(lr_law)
