"""Objectives of the stages that go on from a trained model."""

from __future__ import annotations

from pathlib import Path

from mm1_pipeline.config.stages import UpcycleConfig
from mm1_pipeline.models.checkpoint import load_model
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.models.upcycle import Upcycling, upcycle_checkpoint
from mm1_pipeline.streams.shard_index import ShardIndex

_UPCYCLED = "upcycled"


def continue_from(model_dir: Path, shards_dir: Path, num_streams: int | None = None) -> NextToken:
    """A trained model, ready to be trained on with these shards.

    Where the shards have images of another size, position embeddings are interpolated.

    Source: MM1, SFT (encoder and decoder unfrozen; position-embedding interpolation).

    Args:
        model_dir: what `save_model` wrote.
        shards_dir: what `streams.shards.write_shards` made.
        num_streams: streams of the mixture, for each of which experts' load is measured.
    """
    image_size = ShardIndex.read(shards_dir).image.size
    return NextToken(load_model(model_dir, image_size=image_size), num_streams)


def upcycle_from(
    config: UpcycleConfig, model_dir: Path, shards_dir: Path, work_dir: Path, num_streams: int
) -> NextToken:
    """A dense model as a mixture of experts, ready to be trained on.

    Args:
        config: experts, noise, seed.
        model_dir: the dense model.
        shards_dir: what it is trained on with.
        work_dir: gets the upcycled weights, from which a resumed training starts again.
        num_streams: streams of the mixture, for each of which experts' load is measured.
    """
    upcycling = Upcycling(
        config.moe,
        seed=config.seed,
        expert_noise=config.expert_noise,
        drop_fraction=config.drop_fraction,
    )
    upcycle_checkpoint(model_dir, work_dir / _UPCYCLED, upcycling)
    return continue_from(work_dir / _UPCYCLED, shards_dir, num_streams)
