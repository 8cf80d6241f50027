"""What multimodal pre-training starts from: an encoder and a decoder, each from its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.config.model import DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.pretraining import (
    TextPretrainConfig,
    VisionObjective,
    VisionPretrainConfig,
    WeightSource,
)
from mm1_pipeline.models.aim import PatchPrediction
from mm1_pipeline.models.assembly import assemble_model, check_same
from mm1_pipeline.models.checkpoint import (
    is_saved_vision_encoder,
    load_vision_encoder,
    save_decoder,
    save_vision_encoder,
)
from mm1_pipeline.models.clip import Contrastive, PairInputs
from mm1_pipeline.models.convert.decoder import import_decoder
from mm1_pipeline.models.convert.vision import import_vision_encoder
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.initialization import build_decoder, build_vision_encoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.next_token import NextTextToken
from mm1_pipeline.models.objective import Objective, ShardNeeds
from mm1_pipeline.models.vit import VisionTransformer
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.training.metrics import Row
from mm1_pipeline.training.train import check_needs, train


def make_vision_encoder(
    config: VisionPretrainConfig,
    vision: VisionConfig,
    shards_dir: Path,
    *,
    work_dir: Path,
    output_dir: Path,
    expected_mixture: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Draws, trains or imports an image encoder and writes it.

    Source: MM1, Encoder ablation (CLIP and AIM).

    Args:
        config: where the weights come from, and how they are trained.
        vision: the encoder that is wanted.
        shards_dir: what `streams.shards.write_shards` made; read for `source: train` only.
        work_dir: keeps progress.
        output_dir: where the encoder is written, for `load_vision_encoder`.
        expected_mixture: see `train`.

    Returns:
        A row for every logged step of a training; none without one.

    Raises:
        ValueError: the file's encoder is not the wanted one, or as `train`.
    """
    match config.source:
        case WeightSource.SCRATCH:
            encoder = build_vision_encoder(vision, seed=config.training.seed)
        case WeightSource.FILE:
            assert config.path is not None, "the parameters' own check"
            encoder = read_vision_encoder(Path(config.path), vision)
        case WeightSource.TRAIN:
            return train(
                config.training,
                build_vision_objective(config, vision, ShardIndex.read(shards_dir)),
                shards_dir,
                stage="vision_pretrain",
                work_dir=work_dir,
                output_dir=output_dir,
                expected_mixture=expected_mixture or None,
            )
    save_vision_encoder(encoder, output_dir)
    return []


def make_decoder(
    config: TextPretrainConfig,
    decoder: DecoderConfig,
    shards_dir: Path,
    *,
    work_dir: Path,
    output_dir: Path,
    expected_mixture: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Draws, trains or imports a decoder and writes it.

    Source: MM1, Pre-training (the decoder is trained on text first).

    Args:
        config: where the weights come from, and how they are trained.
        decoder: the decoder that is wanted.
        shards_dir: what `streams.shards.write_shards` made; read for `source: train` only.
        work_dir: keeps progress.
        output_dir: where the decoder is written, for `load_decoder`.
        expected_mixture: see `train`.

    Returns:
        A row for every logged step of a training; none without one.

    Raises:
        ValueError: the file's decoder is not the wanted one, or as `train`.
    """
    match config.source:
        case WeightSource.SCRATCH:
            made = build_decoder(decoder, seed=config.training.seed)
        case WeightSource.FILE:
            assert config.path is not None, "the parameters' own check"
            made = read_decoder(Path(config.path), decoder)
        case WeightSource.TRAIN:
            return train(
                config.training,
                NextTextToken(build_decoder(decoder, seed=config.training.seed)),
                shards_dir,
                stage="text_pretrain",
                work_dir=work_dir,
                output_dir=output_dir,
                expected_mixture=expected_mixture or None,
            )
    save_decoder(made, output_dir)
    return []


def build_vision_objective(
    config: VisionPretrainConfig, vision: VisionConfig, index: ShardIndex
) -> Objective:
    """A new encoder with what it is trained by.

    Args:
        config: which objective, and its sizes.
        vision: shape of the encoder.
        index: of the shards; gives the tokenizer's numbers.
    """
    seed = config.training.seed
    encoder = build_vision_encoder(vision, seed=seed)
    match config.objective:
        case VisionObjective.CLIP:
            return Contrastive(
                encoder,
                config.clip,
                vocab_size=index.vocab_size,
                image_token_id=index.special_ids["image"],
                seed=seed,
                inputs=PairInputs(index.image, index.tokenizer_sha256),
            )
        case VisionObjective.AIM:
            return PatchPrediction(encoder, config.aim, seed=seed)


def read_vision_encoder(source: Path, vision: VisionConfig) -> VisionTransformer:
    """Reads an encoder of this project or of another program, at the wanted resolution.

    Args:
        source: a folder that `save_vision_encoder` wrote, or see `import_vision_encoder`.
        vision: the encoder that is wanted.

    Raises:
        ValueError: it holds another one; all differences are named.
    """
    if not is_saved_vision_encoder(source):
        return import_vision_encoder(source, vision)
    encoder = load_vision_encoder(source, image_size=vision.image_size)
    check_same("vision", encoder.config, vision, source)
    return encoder


def read_decoder(source: Path, decoder: DecoderConfig) -> Decoder:
    """Reads a decoder of this project or of another program.

    Args:
        source: see `import_decoder`.
        decoder: the decoder that is wanted; its vocabulary may have more tokens.

    Raises:
        ValueError: it holds another one; all differences are named.
    """
    made = import_decoder(source, vocab_size=decoder.vocab_size)
    # How it is trained from here on is not the file's to say.
    made.config = dataclasses.replace(made.config, output_z_weight=decoder.output_z_weight)
    check_same("decoder", made.config, decoder, source)
    return made


def initial_model(
    config: MM1Config, shards_dir: Path, *, vision_dir: Path, decoder_dir: Path, seed: int
) -> MM1:
    """The model that multimodal pre-training starts from, checked against the shards.

    Args:
        config: shape of the model.
        shards_dir: what `streams.shards.write_shards` made.
        vision_dir: what `make_vision_encoder` wrote.
        decoder_dir: what `make_decoder` wrote.
        seed: of the connector's weights.

    Raises:
        ValueError: shape, parts and shards do not fit each other.
    """
    index = ShardIndex.read(shards_dir)
    needs = ShardNeeds(
        config.decoder.vocab_size, config.vision.image_size, config.connector.num_tokens
    )
    check_needs(needs, index)
    return assemble_model(
        config,
        index.special_ids["image"],
        vision_dir=vision_dir,
        decoder_dir=decoder_dir,
        seed=seed,
    )
