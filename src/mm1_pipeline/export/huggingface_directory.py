"""Writes a trained model as a directory that transformers loads without this package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.export.code import auto_map, write_code
from mm1_pipeline.models.checkpoint import WEIGHTS, read_model_config
from mm1_pipeline.streams.conversations import CHAT_TEMPLATE
from mm1_pipeline.streams.tokenizer import BOS, EOS, IMAGE, PAD, Tokenizer

_ONE_SQUARE = SubImageConfig()
_INDEX = "model.safetensors.index.json"


def export_model(
    config: ExportConfig,
    model_dir: Path,
    tokenizer_dir: Path,
    transform: ImageTransform,
    output_dir: Path,
    sub_images: SubImageConfig = _ONE_SQUARE,
) -> dict[str, int]:
    """Exports a model with its code, tokenizer and processors.

    `AutoModelForCausalLM.from_pretrained(output_dir, trust_remote_code=True)` loads it where
    only torch and transformers are installed. It computes with a copy of this project's own
    modules, so its logits are those of the model that was trained.

    Args:
        config: precision, file size, chat template.
        model_dir: what `save_model` wrote.
        tokenizer_dir: the tokenizer that the model was trained with.
        transform: how images became pixels in training.
        output_dir: made if missing.
        sub_images: how large images were shown in training.

    Returns:
        Counts for the manifest: parameters, weight files, code files.

    Raises:
        ValueError: the directory holds no model, or tokenizer and model do not fit.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    shape, image_token_id = read_model_config(model_dir)
    tokenizer = Tokenizer.load(tokenizer_dir)
    if tokenizer.image_id != image_token_id or tokenizer.vocab_size > shape.decoder.vocab_size:
        raise ValueError(
            f"Found a tokenizer of {tokenizer.vocab_size} tokens whose image token is "
            f"{tokenizer.image_id}, but the model has {shape.decoder.vocab_size} rows and image "
            f"token {image_token_id}. Export the model with the tokenizer it was trained with."
        )
    classes = auto_map()
    code = write_code(output_dir)
    num_parameters, num_files = _write_weights(config, model_dir / WEIGHTS, output_dir)
    _write_tokenizer(tokenizer, output_dir)
    template = CHAT_TEMPLATE if config.chat_template is None else config.chat_template
    (output_dir / "chat_template.jinja").write_text(template, encoding="utf-8")
    stored_shape = TypeAdapter(type(shape)).dump_python(shape, mode="json")
    special = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    _write_json(
        output_dir / "config.json",
        {
            "architectures": [classes["AutoModelForCausalLM"].partition(".")[2]],
            "auto_map": {
                name: cls for name, cls in classes.items() if name != "AutoImageProcessor"
            },
            "model_type": "mm1",
            "torch_dtype": config.dtype,
            "image_token_id": image_token_id,
            **special,
            "shape": stored_shape,
        },
    )
    # Tokens that no answer holds, as in this project's own generation.
    rows_without_token = range(tokenizer.vocab_size, shape.decoder.vocab_size)
    never = [tokenizer.pad_id, tokenizer.bos_id, image_token_id, *rows_without_token]
    _write_json(output_dir / "generation_config.json", {**special, "suppress_tokens": never})
    _write_processors(classes, shape.connector.num_tokens, transform, sub_images, output_dir)
    return {"parameters": num_parameters, "weight_files": num_files, "code_files": len(code)}


def _write_weights(config: ExportConfig, source: Path, directory: Path) -> tuple[int, int]:
    """Copies the weights under transformers' names, at most a file of them in memory."""
    dtype = getattr(torch, config.dtype)
    with safe_open(source, framework="pt") as file:
        sizes = {name: _num_values(file, name) for name in sorted(file.keys())}
        groups = list(_groups(sizes, config.max_shard_bytes // dtype.itemsize))
        weight_map: dict[str, str] = {}
        for index, group in enumerate(groups, start=1):
            target = _file_name(index, len(groups))
            tensors: dict[str, Tensor] = {
                f"model.{name}": file.get_tensor(name).to(dtype).contiguous() for name in group
            }
            save_file(tensors, directory / target, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, target)
    total = sum(sizes.values())
    if len(groups) > 1:
        metadata = {"total_size": total * dtype.itemsize}
        _write_json(directory / _INDEX, {"metadata": metadata, "weight_map": weight_map})
    return total, len(groups)


def _num_values(file: Any, name: str) -> int:
    return int(torch.Size(file.get_slice(name).get_shape()).numel())


def _groups(sizes: Mapping[str, int], max_values: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, values in sizes.items():
        if group and size + values > max_values:
            yield group
            group, size = [], 0
        group.append(name)
        size += values
    yield group


def _file_name(index: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"model-{index:05d}-of-{count:05d}.safetensors"


def _write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    tokenizer.save(directory)
    tokens = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    _write_json(directory / "special_tokens_map.json", tokens)
    _write_json(
        directory / "tokenizer_config.json",
        {
            **tokens,
            "additional_special_tokens": [IMAGE],
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
    )


def _write_processors(
    classes: Mapping[str, str],
    image_tokens: int,
    transform: ImageTransform,
    sub_images: SubImageConfig,
    directory: Path,
) -> None:
    names = ("AutoImageProcessor", "AutoProcessor")
    common = {
        "processor_class": classes["AutoProcessor"].partition(".")[2],
        "auto_map": {name: classes[name] for name in names},
    }
    _write_json(
        directory / "preprocessor_config.json",
        {
            **common,
            "image_processor_type": classes["AutoImageProcessor"].partition(".")[2],
            "transform": TypeAdapter(ImageTransform).dump_python(transform, mode="json"),
            "sub_images": TypeAdapter(SubImageConfig).dump_python(sub_images, mode="json"),
        },
    )
    _write_json(
        directory / "processor_config.json",
        {**common, "image_tokens": image_tokens, "image_token": IMAGE},
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
