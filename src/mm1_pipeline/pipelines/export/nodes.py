"""Nodes of `export`: models for other programs."""

from __future__ import annotations

from collections.abc import Callable

from kedro_rerun.artifacts import Artifact
from kedro_rerun.narrowing import narrowed

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.datasets.artifact import StagedArtifact, stage


def exporter(output: str) -> Callable[..., StagedArtifact]:
    """The function of a node that writes one model as transformers loads it.

    It is made, not bound by `functools.partial`: Kedro reads the types of parameters off it.

    Args:
        output: Name of the artifact.
    """

    @narrowed(licences=IngestConfig.licences)
    def export_as(
        config: ExportConfig,
        model: Artifact,
        tokenizer: Artifact,
        shards: Artifact,
        licences: dict[str, str | None],
    ) -> StagedArtifact:
        from mm1_pipeline.export.huggingface_directory import export_model
        from mm1_pipeline.reporting.model_card import read_card, write_readme
        from mm1_pipeline.streams.shard_index import ShardIndex

        staged = stage(output)
        index = ShardIndex.read(shards.path)
        counts = export_model(
            config, model.path, tokenizer.path, index.image, staged.directory, index.sub_images
        )
        # Scores are of the moment: an evaluation that comes later exports nothing again.
        card = read_card(model.path, shards.path, model.path.parents[2], licences)
        if card is not None:
            write_readme(card, config.layout, staged.directory)
        return staged.described(counts=counts)

    return export_as
