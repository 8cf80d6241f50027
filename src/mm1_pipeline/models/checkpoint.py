"""Models on disk: safetensors weights beside a JSON config.

The format between stages, and for other programs. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from mm1_pipeline.config._base import OPERATIONAL
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.mm1 import MM1

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1


def save_model(model: MM1, directory: Path) -> None:
    """Writes model.safetensors and config.json; equal models give equal bytes.

    Args:
        model: on any device.
        directory: made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "format_version": FORMAT_VERSION,
        "image_token_id": model.image_token_id,
        "model": _stored_config(model.config),
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_model(
    directory: Path,
    device: torch.device | str = "cpu",
    *,
    gradient_checkpointing: bool = False,
) -> MM1:
    """Reads a model that `save_model` wrote.

    Args:
        directory: folder of the two files.
        device: where the weights are put.
        gradient_checkpointing: see `MM1Config`; how to train is not stored with a model.

    Raises:
        ValueError: a file is missing, or the weights are not those of the config.
    """
    content = _read_config(directory)
    config = TypeAdapter(MM1Config).validate_python(
        {**content["model"], "gradient_checkpointing": gradient_checkpointing}
    )
    with torch.device("meta"):
        model = MM1(config, content["image_token_id"])
    weights = load_file(directory / WEIGHTS, device=str(device))
    _check_weights(weights, model, directory)
    model.load_state_dict(weights, assign=True)
    # Loaded tensors take the place of the parameters, and with it whether they are trained.
    return model.requires_grad_(True)


def _stored_config(config: MM1Config) -> dict[str, Any]:
    """The shape of the model, without the fields that change no result."""
    operational = {
        field.name for field in dataclasses.fields(config) if field.metadata.get(OPERATIONAL)
    }
    return TypeAdapter(MM1Config).dump_python(config, mode="json", exclude=operational)


def _read_config(directory: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory}: found no {' and no '.join(missing)}, expected a folder that "
            "save_model wrote. Check the path, or train the model anew."
        )
    content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{directory / CONFIG}: found format_version {content.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}. Load it with the version of the project that wrote it."
        )
    return content


def _check_weights(weights: dict[str, torch.Tensor], model: MM1, directory: Path) -> None:
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        first = differing[0]
        raise ValueError(
            f"{directory / WEIGHTS}: {len(differing)} tensors do not fit {CONFIG}; {first!r}: "
            f"found {found.get(first, 'none')}, expected {expected.get(first, 'none')}. "
            "The two files must come from one save."
        )
