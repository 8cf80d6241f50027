"""How an imported decoder gets its weights, whatever they came in."""

from __future__ import annotations

import torch
from torch import Tensor

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.decoder import Decoder


def empty_decoder(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """A decoder whose weights are not set."""
    with torch.device("meta"):
        decoder = Decoder(config)
    return decoder.to(dtype).to_empty(device="cpu")


@torch.no_grad()
def fill(decoder: Decoder, name: str, values: Tensor, source: str) -> None:
    """Copies a tensor into place.

    Raises:
        ValueError: it has another shape.
    """
    parameter = decoder.get_parameter(name)
    if values.shape != parameter.shape:
        raise ValueError(
            f"{source}: found {list(values.shape)} for {name}, expected {list(parameter.shape)}. "
            "Config and weights are not of one model."
        )
    parameter.copy_(values)
