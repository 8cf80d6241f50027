"""Nodes of `shard`: records to packed sequences."""

from __future__ import annotations

from typing import Any

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.shard import ShardConfig, TokenizerConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def prepare_tokenizer(config: TokenizerConfig, records: Artifact) -> StagedArtifact:
    """Trains the byte-level BPE on the training records, or takes the user's file."""
    from mm1_pipeline.streams.tokenizer import prepare_tokenizer

    staged = stage("tokenizer")
    tokenizer = prepare_tokenizer(config, records.path, staged.directory)
    return staged.described(counts={"vocab_size": tokenizer.vocab_size})


def pack_shards(
    config: ShardConfig, records: Artifact, synthetic_records: Artifact, tokenizer: Artifact
) -> tuple[StagedArtifact, dict[str, Any]]:
    """Packs the records of every pre-training source into sequences of one length."""
    from mm1_pipeline.corpus.records import pretraining_sources
    from mm1_pipeline.streams.shards import write_shards
    from mm1_pipeline.streams.tokenizer import Tokenizer

    staged = stage("shards")
    folders = [records.path, synthetic_records.path]
    report = write_shards(
        config,
        folders,
        Tokenizer.load(tokenizer.path),
        {name: kind for path in folders for name, kind in pretraining_sources(path).items()},
        staged.directory,
        part=staged.workspace.part,
    )
    return staged.described(counts=report["streams"]), report


def pack_conversations(
    config: ShardConfig, records: Artifact, tokenizer: Artifact
) -> tuple[StagedArtifact, dict[str, Any]]:
    """Packs the conversations of every SFT source into sequences of one length."""
    from mm1_pipeline.corpus.records import conversation_sources
    from mm1_pipeline.streams.conversations import tokenize_conversation
    from mm1_pipeline.streams.shards import write_shards
    from mm1_pipeline.streams.tokenizer import Tokenizer

    staged = stage("sft_shards")
    report = write_shards(
        config,
        records.path,
        Tokenizer.load(tokenizer.path),
        conversation_sources(records.path),
        staged.directory,
        tokenize=tokenize_conversation,
        part=staged.workspace.part,
    )
    return staged.described(counts=report["streams"]), report
