"""Decoders of other programs: the start of `text_pretrain`, or of multimodal pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.checkpoint import is_saved_decoder, load_decoder
from mm1_pipeline.models.convert import families, tensors
from mm1_pipeline.models.decoder import Decoder


def import_decoder(
    source: Path | str, *, vocab_size: int | None = None, dtype: torch.dtype = torch.float32
) -> Decoder:
    """A decoder from a checkpoint on disk, with equal logits; its shape is `decoder.config`.

    Takes a Hugging Face directory (config.json and safetensors, in one file or several) of a
    family in `families.Family`, or what `save_decoder` wrote. Pickles are refused.

    Source: MM1, Pre-training (the decoder is trained on text first); deviation: it may come
    from elsewhere.

    Args:
        source: directory.
        vocab_size: rows of the token embeddings that are wanted; the tokenizer's special tokens
            may need more than the checkpoint has (see `grow_vocabulary`). None keeps them.
        dtype: of the weights in memory.

    Raises:
        ValueError: an architecture or option that is not supported, damaged or missing weights,
            or more rows in the checkpoint than are wanted.
    """
    source = Path(source)
    if is_saved_decoder(source):
        decoder = load_decoder(source).to(dtype)
    elif source.is_dir():
        decoder = _import_huggingface(source, dtype)
    else:
        raise ValueError(
            f"{source}: found no such directory, expected a Hugging Face directory (config.json "
            "and safetensors)."
        )
    if vocab_size is not None:
        grow_vocabulary(decoder, vocab_size)
    return decoder


def imported_config(source: Path | str, *, vocab_size: int | None = None) -> DecoderConfig:
    """The shape that `import_decoder` would give a Hugging Face directory; reads no weights.

    Args:
        source: directory.
        vocab_size: see `import_decoder`.

    Raises:
        ValueError: as `import_decoder`.
    """
    _, config = families.decoder_config(tensors.read_json(Path(source) / tensors.CONFIG))
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
    family, config = families.decoder_config(tensors.read_json(directory / tensors.CONFIG))
    with tensors.SafetensorsDirectory(directory) as files:
        decoder = empty_decoder(config, dtype)
        used: set[str] = set()
        for entry in families.entries(config, family):
            fill(decoder, entry.ours, entry.to_ours(files.read), str(directory))
            used.update(entry.theirs)
        unused = [
            name for name in files if name not in used and not families.ignorable(name, config)
        ]
    if unused:
        raise ValueError(
            f"{directory}: found {len(unused)} tensors that a {family} decoder does not have, "
            f"such as {unused[0]!r}. It is another architecture than config.json says."
        )
    return decoder


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
