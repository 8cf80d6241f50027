"""Decoders of other programs: the start of `text_pretrain`, or of multimodal pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.checkpoint import is_saved_decoder, load_decoder
from mm1_pipeline.models.convert import families
from mm1_pipeline.models.convert.filling import empty_decoder, fill
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.safetensors_files import WeightFiles


def import_decoder(
    source: Path | str, *, vocab_size: int | None = None, dtype: torch.dtype = torch.float32
) -> Decoder:
    """A decoder from a checkpoint on disk, with equal logits; its shape is `decoder.config`.

    Takes a Hugging Face directory (config.json and safetensors, in one file or several) of a
    family in `families.Family`, a GGUF file, or what `save_decoder` wrote. Pickles are refused.

    Source: MM1, Pre-training (the decoder is trained on text first); deviation: it may come
    from elsewhere.

    Args:
        source: directory, or GGUF file.
        vocab_size: rows of the token embeddings that are wanted; the tokenizer's special tokens
            may need more than the checkpoint has (see `grow_vocabulary`). None keeps them.
        dtype: of the weights in memory.

    Raises:
        ValueError: an architecture or option that is not supported, damaged or missing weights,
            or more rows in the checkpoint than are wanted.
    """
    source = Path(source)
    if source.suffix == ".gguf" and source.is_file():
        from mm1_pipeline.models.convert.gguf import import_gguf

        decoder = import_gguf(source, dtype)
    elif is_saved_decoder(source):
        decoder = load_decoder(source).to(dtype)
    elif source.is_dir():
        decoder = _import_huggingface(source, dtype)
    else:
        raise ValueError(
            f"{source}: found no such directory or .gguf file, expected a Hugging Face directory "
            "(config.json and safetensors) or a GGUF file."
        )
    if vocab_size is not None:
        grow_vocabulary(decoder, vocab_size)
    return decoder


def imported_config(source: Path | str, *, vocab_size: int | None = None) -> DecoderConfig:
    """The shape that `import_decoder` would give a Hugging Face directory; no weights are read.

    Args:
        source: directory.
        vocab_size: see `import_decoder`.

    Raises:
        ValueError: as `import_decoder`.
    """
    _, config = families.decoder_config(_read_config(WeightFiles(Path(source))))
    if vocab_size is None:
        return config
    return dataclasses.replace(config, vocab_size=vocab_size)


@torch.no_grad()
def grow_vocabulary(decoder: Decoder, vocab_size: int) -> None:
    """Adds rows for new tokens, each the mean of the old rows.

    A mean row gives a new token a logit below that of likely ones, so that the distribution the
    decoder learned hardly moves. Our choice.

    Args:
        decoder: changed in place.
        vocab_size: rows afterwards.

    Raises:
        ValueError: fewer than it has.
    """
    found = decoder.config.vocab_size
    if vocab_size < found:
        raise ValueError(
            f"decoder.vocab_size: found {vocab_size}, but the imported decoder has {found} rows, "
            f"and none can be taken away. Make it at least {found}."
        )
    decoder.embedding = nn.Embedding.from_pretrained(
        _grown(decoder.embedding.weight, vocab_size), freeze=False
    )
    if decoder.head is not None:
        decoder.head.weight = nn.Parameter(_grown(decoder.head.weight, vocab_size))
        decoder.head.out_features = vocab_size
    decoder.config = dataclasses.replace(decoder.config, vocab_size=vocab_size)


def _grown(weight: Tensor, num_rows: int) -> Tensor:
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(num_rows - len(weight), -1)])


def _import_huggingface(directory: Path, dtype: torch.dtype) -> Decoder:
    files = WeightFiles(directory)
    family, config = families.decoder_config(_read_config(files))
    entries = list(families.entries(config, family))
    needed = {name for entry in entries for name in entry.theirs}
    _check_names(files, needed, config, family)
    decoder = empty_decoder(config, dtype)
    for entry in entries:
        fill(decoder, entry.ours, entry.to_ours(files.tensor), str(directory))
    return decoder


def _read_config(files: WeightFiles) -> dict[str, Any]:
    content = files.read_json("config.json")
    if not content:
        raise ValueError(
            f"{files.folder}: found no config.json, expected a Hugging Face directory."
        )
    return content


def _check_names(
    files: WeightFiles, needed: set[str], config: DecoderConfig, family: families.Family
) -> None:
    if missing := sorted(needed - files.names):
        raise ValueError(
            f"{files.source}: found no tensor {missing[0]!r} (nor {len(missing) - 1} others), "
            "which config.json asks for. The weights are incomplete, or of another model."
        )
    unused = sorted(name for name in files.names - needed if not families.ignorable(name, config))
    if unused:
        raise ValueError(
            f"{files.source}: found {len(unused)} tensors that a {family} decoder does not have, "
            f"such as {unused[0]!r}. It is another architecture than config.json says."
        )
