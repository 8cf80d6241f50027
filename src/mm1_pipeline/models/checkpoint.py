"""Models on disk: safetensors weights beside a JSON config.

The format between stages, and for other programs. Nothing in it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mm1_pipeline.config._base import OPERATIONAL
from mm1_pipeline.config.model import DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.vit import VisionTransformer, resize_positions

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1
_MAX_FOUND = 300
"""Characters of a library's error that are passed on."""

M = TypeVar("M", bound=nn.Module)


def save_model(model: MM1, directory: Path) -> None:
    """Writes model.safetensors and config.json; equal models give equal bytes.

    Args:
        model: on any device.
        directory: made if it does not exist.
    """
    _write_model(model, _model_content(model.config, model.image_token_id), directory)


def save_decoder(decoder: Decoder, directory: Path) -> None:
    """Writes a decoder alone, as `save_model` does a whole model.

    Args:
        decoder: on any device.
        directory: made if it does not exist.
    """
    _write_model(decoder, {"decoder": _stored_config(decoder.config)}, directory)


def load_model(
    directory: Path,
    device: torch.device | str = "cpu",
    *,
    gradient_checkpointing: bool = False,
    image_size: int | None = None,
) -> MM1:
    """Reads a model that `save_model` wrote.

    Source: MM1, SFT (position embeddings are interpolated to the higher resolution).

    Args:
        directory: folder of the two files.
        device: where the weights are put.
        gradient_checkpointing: see `MM1Config`; how to train is not stored with a model.
        image_size: pixels of a side that the encoder is to read; position embeddings of the
            encoder and of the connector are then interpolated. None takes the stored size.

    Raises:
        ValueError: a file is missing, or the weights are not those of the config.
    """
    with _reading(directory):
        config, image_token_id = read_model_config(directory)
        config = dataclasses.replace(config, gradient_checkpointing=gradient_checkpointing)
        _check_depth(config, directory)
        with torch.device("meta"):
            model = MM1(config, image_token_id)
        model = _with_weights(model, directory, device)
        if image_size is None or image_size == config.vision.image_size:
            return model
        return _at_resolution(model, image_size)


def read_model_config(directory: Path) -> tuple[MM1Config, int]:
    """Shape and image token of a model that `save_model` wrote, without its weights.

    Raises:
        ValueError: a file is missing, or of another version.
    """
    with _reading(directory):
        content = _read_config(directory)
        if "model" not in content:
            raise ValueError(
                f"{directory / CONFIG}: found no model, expected what save_model wrote."
            )
        token_id = content.get("image_token_id")
        if type(token_id) is not int:
            raise ValueError(
                f"{directory / CONFIG}: found image_token_id {token_id!r}, expected a number."
            )
        return TypeAdapter(MM1Config).validate_python(content["model"]), token_id


def write_model_config(config: MM1Config, image_token_id: int, directory: Path) -> None:
    """Writes the config.json of weights that are written by other means."""
    _write_config(_model_content(config, image_token_id), directory)


def _model_content(config: MM1Config, image_token_id: int) -> dict[str, Any]:
    return {"image_token_id": image_token_id, "model": _stored_config(config)}


def _at_resolution(model: MM1, image_size: int) -> MM1:
    """The same model for images of another size; only position embeddings change."""
    vision = dataclasses.replace(model.config.vision, image_size=image_size)
    config = dataclasses.replace(model.config, vision=vision)
    weights = model.state_dict()
    for name in ("vision.position_embeddings", "connector.position_embeddings"):
        if name in weights:
            has_class = name.startswith("vision.") and vision.class_token
            weights[name] = resize_positions(weights[name], vision.grid, class_token=has_class)
    with torch.device("meta"):
        resized = MM1(config, model.image_token_id)
    resized.load_state_dict(weights, assign=True)
    return resized.requires_grad_(True)


def load_decoder(
    directory: Path, device: torch.device | str = "cpu", *, recompute: bool = False
) -> Decoder:
    """Reads a decoder that `save_decoder` wrote.

    Args:
        directory: folder of the two files.
        device: where the weights are put.
        recompute: see `Decoder`.

    Raises:
        ValueError: a file is missing, the directory holds another kind of model, or the weights
            are not those of the config.
    """
    with _reading(directory):
        content = _read_config(directory)
        if "decoder" not in content:
            raise ValueError(
                f"{directory / CONFIG}: found no decoder, expected what save_decoder wrote."
            )
        config = TypeAdapter(DecoderConfig).validate_python(content["decoder"])
        _check_depth(config, directory)
        with torch.device("meta"):
            decoder = Decoder(config, recompute=recompute)
        return _with_weights(decoder, directory, device)


def save_vision_encoder(encoder: VisionTransformer, directory: Path) -> None:
    """Writes an encoder alone, as `save_model` does a whole model.

    Args:
        encoder: on any device.
        directory: made if it does not exist.
    """
    _write_model(encoder, {"vision": _stored_config(encoder.config)}, directory)


def load_vision_encoder(
    directory: Path,
    *,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    recompute: bool = False,
) -> VisionTransformer:
    """Reads an encoder that `save_vision_encoder` wrote.

    Source: MM1, SFT (position-embedding interpolation).

    Args:
        directory: folder of the two files.
        image_size: interpolates the position embeddings for images of this size; None keeps
            the stored one.
        device: where the weights are put.
        recompute: see `VisionTransformer`.

    Raises:
        ValueError: a file is missing, the directory holds another kind of model, or the weights
            are not those of the config.
    """
    with _reading(directory):
        content = _read_config(directory)
        if "vision" not in content:
            raise ValueError(
                f"{directory / CONFIG}: found no vision encoder, expected what save_vision_encoder "
                "wrote."
            )
        config = TypeAdapter(VisionConfig).validate_python(content["vision"])
        _check_depth(config, directory)
        with torch.device("meta"):
            encoder = VisionTransformer(config, recompute=recompute)
        encoder = _with_weights(encoder, directory, device)
        if image_size is not None:
            encoder.resize(image_size)
        return encoder


def is_saved_vision_encoder(directory: Path) -> bool:
    """Whether a directory looks like what `save_vision_encoder` wrote."""
    return _is_saved(directory, "vision")


def is_saved_decoder(directory: Path) -> bool:
    """Whether a directory looks like what `save_decoder` wrote, not like another program's."""
    return _is_saved(directory, "decoder")


def _is_saved(directory: Path, part: str) -> bool:
    if not all((directory / name).is_file() for name in (CONFIG, WEIGHTS)):
        return False
    try:
        content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "format_version" in content and part in content


def save_part(
    weights: Mapping[str, torch.Tensor], kind: str, shape: dict[str, Any], directory: Path
) -> None:
    """Writes weights that are no model by themselves, in the two files of a model.

    Args:
        weights: by name, on any device.
        kind: what they are; `load_part` asks for the same.
        shape: JSON values by which they can be read again.
        directory: made if it does not exist.
    """
    _write_files(weights, {kind: shape}, directory)


def load_part(directory: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_part` wrote: the weights on the CPU, and the shape.

    Raises:
        ValueError: a file is missing or damaged, or the directory holds something else.
    """
    with _reading(directory):
        content = _read_config(directory)
        if kind not in content:
            raise ValueError(
                f"{directory / CONFIG}: found no {kind!r}, expected weights of that kind."
            )
        return load_file(directory / WEIGHTS), content[kind]


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Gives whatever damaged files make libraries raise as an error that names their folder."""
    try:
        yield
    except (OSError, MemoryError):
        raise  # which say what is missing
    except Exception as error:
        if str(directory) in str(error):
            raise
        found = " ".join(str(error).split())[:_MAX_FOUND]
        raise ValueError(
            f"{directory}: found no readable safetensors file {WEIGHTS} with its {CONFIG} "
            f"({type(error).__name__}: {found}). Copy both anew, or remove the folder so that it "
            "is made again."
        ) from error


def _check_depth(config: MM1Config | VisionConfig | DecoderConfig, directory: Path) -> None:
    """Refuses a config of more layers than the file has tensors before any layer is built."""
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        num_tensors = len(list(file.keys()))
    parts = (config.vision, config.decoder) if isinstance(config, MM1Config) else (config,)
    deepest = max(part.num_layers for part in parts)
    if deepest > num_tensors:
        raise ValueError(
            f"{directory / CONFIG}: found {deepest} layers, but {WEIGHTS} has {num_tensors} "
            "tensors. Copy the folder anew."
        )


def _write_model(module: nn.Module, content: dict[str, Any], directory: Path) -> None:
    _write_files(module.state_dict(), content, directory)


def _write_files(
    weights: Mapping[str, torch.Tensor], content: dict[str, Any], directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, directory / WEIGHTS, metadata={"format": "pt"})
    _write_config(content, directory)


def _write_config(content: dict[str, Any], directory: Path) -> None:
    content = {"format_version": FORMAT_VERSION, **content}
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _with_weights(module: M, directory: Path, device: torch.device | str) -> M:
    weights = load_file(directory / WEIGHTS, device=str(device))
    check_weights(weights, module, directory)
    module.load_state_dict(weights, assign=True)
    # Loaded tensors take the place of the parameters, and with it whether they are trained.
    return module.requires_grad_(True)


def _stored_config(config: MM1Config | VisionConfig | DecoderConfig) -> dict[str, Any]:
    """The shape of the model, without the fields that change no result."""
    operational = {
        field.name for field in dataclasses.fields(config) if field.metadata.get(OPERATIONAL)
    }
    return TypeAdapter(type(config)).dump_python(config, mode="json", exclude=operational)


def _read_config(directory: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory}: found no {' and no '.join(missing)}, expected a folder that "
            "save_model wrote. Check the path, or train the model anew."
        )
    content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(
            f"{directory / CONFIG}: found {type(content).__name__}, expected a JSON object."
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{directory / CONFIG}: found format_version {content.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}. Load it with the version of the project that wrote it."
        )
    return content


def load_trained_encoder(
    directory: Path, kind: str, objective: str
) -> tuple[VisionTransformer, dict[str, torch.Tensor], dict[str, Any]]:
    """Reads an encoder, and what its objective stored beside it with `save_part`.

    Args:
        directory: of the encoder; the other folder in it is named like its kind.
        kind: as `save_part` was given it.
        objective: which stores such a part, for the message.

    Returns:
        The encoder, and weights and shape of the part.

    Raises:
        ValueError: there is no encoder, it was not trained by this objective, or files are damaged.
    """
    encoder = load_vision_encoder(directory)
    if not (directory / kind).is_dir():
        raise ValueError(
            f"{directory}: found an encoder without a folder {kind!r}, expected what the stage "
            f"vision_pretrain writes with source: train and objective: {objective}."
        )
    return encoder, *load_part(directory / kind, kind)


def check_finite(model: nn.Module, place: str | Path) -> None:
    """Refuses a model whose training diverged.

    Args:
        model: any.
        place: where it was read, for the message.

    Raises:
        ValueError: a weight is no number.
    """
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{place}: found weights that are no numbers ({broken[0]}), expected a training "
            "that did not diverge."
        )


def check_weights(weights: Mapping[str, torch.Tensor], module: nn.Module, directory: Path) -> None:
    """Checks that weights are those of a module, by names and shapes.

    Args:
        weights: by name.
        module: which is to hold them.
        directory: where they were read, for the message.

    Raises:
        ValueError: some differ, are missing or too many.
    """
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
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
