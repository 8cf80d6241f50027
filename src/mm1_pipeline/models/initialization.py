"""Random weights of a new model."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.vit import VisionTransformer

PLACE_STD = 0.02
"""Standard deviation of what is added to patches or asked of them: position and class
embeddings, queries. Our choice."""

_PLACES = ("position_embeddings", "vision.class_embedding", "connector.queries")
_RESIDUAL_OUTPUTS = (
    "attention.output.weight",
    "feed_forward.down.weight",
    "feed_forward.experts.down",
    "feed_forward.shared.down.weight",
)
_EXPERTS = ".experts."


def build_model(
    config: MM1Config, image_token_id: int, *, seed: int, device: torch.device | str = "cpu"
) -> MM1:
    """A new model with random weights.

    Args:
        config: shape of the model.
        image_token_id: the tokenizer's placeholder for image tokens.
        seed: equal seeds give equal weights, on every device.
        device: where the weights lie.
    """
    with torch.device("meta"):  # allocate once, not also for torch's default weights
        model = MM1(config, image_token_id)
    model.to_empty(device=device)
    initialize(model, seed)
    return model


def build_vision_encoder(config: VisionConfig, *, seed: int) -> VisionTransformer:
    """A new encoder; its weights are those that `build_model` gives it in a whole model.

    Args:
        config: shape of the encoder.
        seed: of the weights.
    """
    with torch.device("meta"):
        encoder = VisionTransformer(config)
    encoder.to_empty(device="cpu")
    initialize(encoder, seed, prefix="vision.")
    return encoder


def build_decoder(config: DecoderConfig, *, seed: int) -> Decoder:
    """A new decoder; its weights are those that `build_model` gives it in a whole model.

    Args:
        config: shape of the decoder.
        seed: of the weights.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.to_empty(device="cpu")
    initialize(decoder, seed, prefix="decoder.")
    return decoder


@torch.no_grad()
def initialize(model: nn.Module, seed: int, *, prefix: str = "") -> None:
    """Overwrites all weights with random ones.

    Each tensor has a generator of its own, seeded by the seed and the tensor's name: another
    connector or encoder leaves all other weights as they were, so the arms of an ablation
    differ by what is ablated only. The paper gives no initialisation: our choice.

    Args:
        model: an MM1 or a part of one; all of its weights are overwritten.
        seed: of the draw.
        prefix: of a part, what its names start with inside an MM1 (`vision.`); the part then
            gets the weights that it would get there.
    """
    depths = _depths(model, prefix)
    for short_name, parameter in model.named_parameters():
        name = prefix + short_name
        if parameter.ndim == 1 and not name.endswith(_PLACES):
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        std = _standard_deviation(name, parameter, depths)
        values = torch.randn(parameter.shape, generator=generator_of(seed, name)) * std
        parameter.copy_(values.to(parameter.dtype))


def _depths(model: nn.Module, prefix: str) -> dict[str, int]:
    """Numbers of layers, by the part of the model."""
    return {
        (prefix + name).partition(".")[0]: len(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "layers" and isinstance(module, nn.ModuleList)
    }


def _standard_deviation(name: str, parameter: Tensor, depths: dict[str, int]) -> float:
    if name.endswith(_PLACES):
        return PLACE_STD
    # Outputs of about the size of the inputs, at every width. Token embeddings too, by their use
    # as the map to the vocabulary; measured, that learns faster than 0.02 at small widths.
    # A stack of experts is drawn as one tensor, each expert like a dense layer. The router too is
    # of that size: logits of about 1, so that no expert starts with (nearly) all positions.
    fan_in = parameter.shape[-1] if _EXPERTS in name else parameter.numel() // len(parameter)
    std = 1 / math.sqrt(fan_in)
    if name.endswith(_RESIDUAL_OUTPUTS):
        # Two maps a layer add to the residual stream: together they keep its variance.
        std /= math.sqrt(2 * depths[name.partition(".")[0]])
    return std


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of one tensor: equal seeds and names draw equal numbers, in any order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
