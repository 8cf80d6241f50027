"""Random weights of a new model."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.mm1 import MM1

PLACE_STD = 0.02
"""Standard deviation of what is added to patches or asked of them: position and class
embeddings, queries. Our choice."""

_PLACES = ("position_embeddings", "vision.class_embedding", "connector.queries")
_RESIDUAL_OUTPUTS = (
    "attention.output.weight",
    "feed_forward.down.weight",
    "feed_forward.experts.down",
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


@torch.no_grad()
def initialize(model: MM1, seed: int) -> None:
    """Overwrites all weights with random ones.

    Each tensor has a generator of its own, seeded by the seed and the tensor's name: another
    connector or encoder leaves all other weights as they were, so the arms of an ablation
    differ by what is ablated only. The paper gives no initialisation: our choice.

    Args:
        model: all of its weights are overwritten.
        seed: of the draw.
    """
    depths = {"vision": len(model.vision.layers), "decoder": len(model.decoder.layers)}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.endswith(_PLACES):
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        std = _standard_deviation(name, parameter, depths)
        values = torch.randn(parameter.shape, generator=_generator(seed, name)) * std
        parameter.copy_(values.to(parameter.dtype))


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


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
