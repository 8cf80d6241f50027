"""Nodes of `export`: models for other programs."""

from __future__ import annotations

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage
from mm1_pipeline.staleness.artifacts import Artifact


def export_pretrained(
    config: ExportConfig, pretrained_model: Artifact, tokenizer: Artifact, shards: Artifact
) -> StagedArtifact:
    """Writes the pre-trained model as transformers loads it."""
    from mm1_pipeline.export.huggingface_directory import export_model
    from mm1_pipeline.streams.shard_index import ShardIndex

    staged = stage("exported_pretrain")
    transform = ShardIndex.read(shards.path).image
    counts = export_model(
        config, pretrained_model.path, tokenizer.path, transform, staged.directory
    )
    return staged.described(counts=counts)
