"""What a grid of the lab is given: the parameters of every stage that an arm may change."""

from __future__ import annotations

from typing import TypedDict

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig
from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.config.stages import SFTConfig, UpcycleConfig
from mm1_pipeline.config.training import TrainingConfig


class StageParameters(TypedDict):
    """Parameter groups by name, in the order of the stages."""

    ingest: IngestConfig
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
