"""Writes a trained model as a directory that transformers loads without this package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm1_pipeline.config.export import ExportConfig, Layout
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.export.code import auto_map, write_code
from mm1_pipeline.export.llava import check_llava, llava_processors
from mm1_pipeline.models.checkpoint import WEIGHTS, read_model_config
from mm1_pipeline.models.convert.llava import StoredTensor, llava_config, llava_pieces
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

    With `layout: llava` there is no code: `LlavaForConditionalGeneration.from_pretrained` loads
    it as it loads any LLaVA. Only models of that shape can be written so.

    Args:
        config: layout, precision, file size, chat template.
        model_dir: what `save_model` wrote.
        tokenizer_dir: the tokenizer that the model was trained with.
        transform: how images became pixels in training.
        output_dir: made if missing.
        sub_images: how large images were shown in training.

    Returns:
        Counts for the manifest: parameters, weight files, code files.

    Raises:
        ValueError: the directory holds no model, tokenizer and model do not fit, or the layout
            cannot hold the model; every reason is named.
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
    special = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    source = model_dir / WEIGHTS
    match config.layout:
        case Layout.OWN:
            model_config, code = _own_config(shape, image_token_id), write_code(output_dir)
            pieces = [
                StoredTensor(f"model.{name}", size, name)
                for name, size in sorted(_shapes(source).items())
            ]
            processors = _own_processors(shape.connector.num_tokens, transform, sub_images)
        case Layout.LLAVA:
            check_llava(shape, transform, sub_images)
            model_config, code = llava_config(shape, image_token_id), []
            pieces = list(llava_pieces(shape, _shapes(source)))
            processors = llava_processors(shape, transform)
    num_parameters, num_files = _write_weights(config, source, output_dir, pieces)
    _write_tokenizer(tokenizer, output_dir)
    template = CHAT_TEMPLATE if config.chat_template is None else config.chat_template
    (output_dir / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(
        output_dir / "config.json", {**model_config, "torch_dtype": config.dtype, **special}
    )
    # Tokens that no answer holds, as in this project's own generation.
    rows_without_token = range(tokenizer.vocab_size, shape.decoder.vocab_size)
    never = [tokenizer.pad_id, tokenizer.bos_id, image_token_id, *rows_without_token]
    _write_json(output_dir / "generation_config.json", {**special, "suppress_tokens": never})
    for name, content in processors.items():
        _write_json(output_dir / name, content)
    return {"parameters": num_parameters, "weight_files": num_files, "code_files": len(code)}


def _own_config(shape: MM1Config, image_token_id: int) -> dict[str, Any]:
    classes = auto_map()
    return {
        "architectures": [classes["AutoModelForCausalLM"].partition(".")[2]],
        "auto_map": {name: cls for name, cls in classes.items() if name != "AutoImageProcessor"},
        "model_type": "mm1",
        "image_token_id": image_token_id,
        "shape": TypeAdapter(MM1Config).dump_python(shape, mode="json"),
    }


def _shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a file, without reading them."""
    with safe_open(source, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _write_weights(
    config: ExportConfig, source: Path, directory: Path, pieces: Sequence[StoredTensor]
) -> tuple[int, int]:
    """Copies the weights under transformers' names, at most a file of them in memory."""
    dtype = getattr(torch, config.dtype)
    by_name = {piece.name: piece for piece in pieces}
    sizes = {piece.name: torch.Size(piece.shape).numel() for piece in pieces}
    groups = list(_groups(sizes, config.max_shard_bytes // dtype.itemsize))
    weight_map: dict[str, str] = {}
    with safe_open(source, framework="pt") as file:
        for index, group in enumerate(groups, start=1):
            target = _file_name(index, len(groups))
            # Clones, because a slice still holds its whole tensor.
            tensors: dict[str, Tensor] = {
                name: by_name[name].read(file.get_tensor).to(dtype).clone().contiguous()
                for name in group
            }
            save_file(tensors, directory / target, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, target)
    total = sum(sizes.values())
    if len(groups) > 1:
        metadata = {"total_size": total * dtype.itemsize}
        _write_json(directory / _INDEX, {"metadata": metadata, "weight_map": weight_map})
    return total, len(groups)


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
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
    )


def _own_processors(
    image_tokens: int, transform: ImageTransform, sub_images: SubImageConfig
) -> dict[str, dict[str, Any]]:
    classes = auto_map()
    names = ("AutoImageProcessor", "AutoProcessor")
    common = {
        "processor_class": classes["AutoProcessor"].partition(".")[2],
        "auto_map": {name: classes[name] for name in names},
    }
    return {
        "preprocessor_config.json": {
            **common,
            "image_processor_type": classes["AutoImageProcessor"].partition(".")[2],
            "transform": TypeAdapter(ImageTransform).dump_python(transform, mode="json"),
            "sub_images": TypeAdapter(SubImageConfig).dump_python(sub_images, mode="json"),
        },
        "processor_config.json": {**common, "image_tokens": image_tokens, "image_token": IMAGE},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
