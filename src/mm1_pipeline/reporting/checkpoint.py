"""Sizes of a saved model, read from its files without loading it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors format itself sets."""


@dataclass(frozen=True)
class ModelSummary:
    """What a reader wants to know about a saved model.

    Attributes:
        config: its shape: `vision`, `connector`, `decoder`.
        num_parameters: stored parameters of each part (`vision`, `connector`, `decoder`).
    """

    config: Mapping[str, Any]
    num_parameters: Mapping[str, int]

    @property
    def total_parameters(self) -> int:
        return sum(self.num_parameters.values())


def summarize_model(directory: Path) -> ModelSummary | None:
    """Reads a model's config and counts its parameters.

    Args:
        directory: folder with model.safetensors and config.json.

    Returns:
        The summary, or None where the folder holds no such model.

    Raises:
        ValueError: when the weights file is cut short or is not of the safetensors format.
    """
    weights, config = directory / WEIGHTS, directory / CONFIG
    if not weights.is_file() or not config.is_file():
        return None
    content = json.loads(config.read_text(encoding="utf-8"))
    return ModelSummary(content["model"], count_parameters(weights))


def count_parameters(weights: Path) -> dict[str, int]:
    """Parameters of each part of a model, by the first part of the tensors' names.

    Only the header is read: eight bytes with its length, then JSON with every tensor's shape.
    """
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(
                f"{weights}: found a header of {length} bytes, expected at most "
                f"{_MAX_HEADER_BYTES}; this is not a safetensors file. Write the model anew."
            )
        header = file.read(length)
    if len(header) < length or not header:
        raise ValueError(
            f"{weights}: found {len(header)} of {length} bytes of the header; the file is cut "
            "short. Write the model anew."
        )
    sizes: Counter[str] = Counter()
    for name, tensor in json.loads(header).items():
        if name != "__metadata__":
            sizes[name.partition(".")[0]] += math.prod(tensor["shape"])
    return dict(sizes)
