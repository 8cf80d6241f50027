"""Nodes of `export`: models for other programs."""

from __future__ import annotations

from collections.abc import Callable

from kedro_rerun.artifacts import Artifact

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def exporter(output: str) -> Callable[..., StagedArtifact]:
    """The function of a node that writes one model as transformers loads it.

    It is made, not bound by `functools.partial`: Kedro reads the types of parameters off it.

    Args:
        output: Name of the artifact.
    """

    def export_as(
        config: ExportConfig, model: Artifact, tokenizer: Artifact, shards: Artifact
    ) -> StagedArtifact:
        from mm1_pipeline.export.huggingface_directory import export_model
        from mm1_pipeline.streams.shard_index import ShardIndex

        staged = stage(output)
        index = ShardIndex.read(shards.path)
        counts = export_model(
            config, model.path, tokenizer.path, index.image, staged.directory, index.sub_images
        )
        return staged.described(counts=counts)

    return export_as
