"""A whole model put together from a stored encoder and a stored decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.checkpoint import load_decoder, load_vision_encoder
from mm1_pipeline.models.initialization import initialize
from mm1_pipeline.models.mm1 import MM1


def assemble_model(
    config: MM1Config, image_token_id: int, *, vision_dir: Path, decoder_dir: Path, seed: int
) -> MM1:
    """A model of a stored encoder and decoder, with a new connector between them.

    Two parts with random weights of the same seed give, bit for bit, what
    `initialization.build_model` gives.

    Source: MM1, Model and Pre-training.

    Args:
        config: shape of the model; the encoder may have been stored at another image_size.
        image_token_id: the tokenizer's placeholder for image tokens.
        vision_dir: what `save_vision_encoder` wrote.
        decoder_dir: what `save_decoder` wrote.
        seed: of the connector's weights.

    Raises:
        ValueError: a part is not what `config` describes.
    """
    recompute = config.gradient_checkpointing
    encoder = load_vision_encoder(
        vision_dir, image_size=config.vision.image_size, recompute=recompute
    )
    check_same("vision", encoder.config, config.vision, vision_dir)
    decoder = load_decoder(decoder_dir, recompute=recompute)
    check_same("decoder", decoder.config, config.decoder, decoder_dir)
    with torch.device("meta"):
        model = MM1(config, image_token_id)
    model.vision, model.decoder = encoder, decoder
    model.connector.to_empty(device="cpu")
    initialize(model.connector, seed, prefix="connector.")
    return model


def check_same(part: str, found: Any, wanted: Any, source: Path) -> None:
    """Refuses a part of another shape than the parameters describe.

    Args:
        part: `vision` or `decoder`, as in `model.vision`.
        found: shape of what was read.
        wanted: shape that the parameters give.
        source: where it was read from.

    Raises:
        ValueError: naming every parameter to change.
    """
    differences = [
        f"model.{part}.{field.name}: {getattr(wanted, field.name)} -> {getattr(found, field.name)}"
        for field in dataclasses.fields(found)
        if getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if differences:
        raise ValueError(
            f"{source}: found another {part} than model.{part} describes. To use it, change "
            f"{'; '.join(differences)}; or make it anew."
        )
