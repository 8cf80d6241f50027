"""Nodes of `export`: models for other programs."""

from __future__ import annotations

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def export_pretrained(
    config: ExportConfig, pretrained_model: Artifact, tokenizer: Artifact, shards: Artifact
) -> StagedArtifact:
    """Writes the pre-trained model as transformers loads it."""
    return _export("exported_pretrain", config, pretrained_model, tokenizer, shards)


def export_upcycled(
    config: ExportConfig, upcycled_model: Artifact, tokenizer: Artifact, shards: Artifact
) -> StagedArtifact:
    """Writes the mixture of experts as transformers loads it."""
    return _export("exported_upcycle", config, upcycled_model, tokenizer, shards)


def export_fine_tuned(
    config: ExportConfig, sft_model: Artifact, tokenizer: Artifact, sft_shards: Artifact
) -> StagedArtifact:
    """Writes the fine-tuned model as transformers loads it."""
    return _export("exported_sft", config, sft_model, tokenizer, sft_shards)


def _export(
    name: str, config: ExportConfig, model: Artifact, tokenizer: Artifact, shards: Artifact
) -> StagedArtifact:
    from mm1_pipeline.export.huggingface_directory import export_model
    from mm1_pipeline.streams.shard_index import ShardIndex

    staged = stage(name)
    index = ShardIndex.read(shards.path)
    counts = export_model(
        config, model.path, tokenizer.path, index.image, staged.directory, index.sub_images
    )
    return staged.described(counts=counts)
