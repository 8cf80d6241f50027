"""Decoders of other programs: the start of `text_pretrain`, or of multimodal pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.checkpoint import is_saved_decoder, load_decoder
from mm1_pipeline.models.convert import families
from mm1_pipeline.models.convert.accounting import check_tensors
from mm1_pipeline.models.convert.filling import empty_decoder, fill
from mm1_pipeline.models.convert.tensor_names import entries, reason_to_skip
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
        decoder = _Checkpoint(source).decoder(dtype)
    else:
        raise ValueError(
            f"{source}: found no such directory or .gguf file, expected a Hugging Face directory "
            "(config.json and safetensors) or a GGUF file."
        )
    if vocab_size is not None:
        grow_vocabulary(decoder, vocab_size)
    return decoder


def imported_config(source: Path | str, *, vocab_size: int | None = None) -> DecoderConfig:
    """The shape that `import_decoder` would give a checkpoint; no weights are read.

    The names of a Hugging Face directory's tensors are checked too.

    Args:
        source: directory, or GGUF file.
        vocab_size: see `import_decoder`.

    Raises:
        ValueError: as `import_decoder`.
    """
    source = Path(source)
    if source.suffix == ".gguf":
        from mm1_pipeline.models.convert.gguf import gguf_config

        config = gguf_config(source)
    else:
        config = _Checkpoint(source).config
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


class _Checkpoint:
    """A Hugging Face directory whose config and names of tensors are those of one decoder."""

    def __init__(self, directory: Path) -> None:
        self.files = WeightFiles(directory)
        content = self.files.read_json("config.json")
        if not content:
            raise ValueError(
                f"{self.files.folder}: found no config.json, expected a Hugging Face directory."
            )
        family, self.config = families.decoder_config(content)
        scale = families.query_scale(content, self.config)
        self.entries = list(entries(self.config, family, scale))
        check_tensors(
            self.files.source,
            self.files.names,
            {name for entry in self.entries for name in entry.theirs},
            f"a {family} decoder",
            lambda name: reason_to_skip(name, self.config),
        )

    def decoder(self, dtype: torch.dtype) -> Decoder:
        """With its weights."""
        head, tokens = "lm_head.weight", "model.embed_tokens.weight"
        has_both = self.config.tie_embeddings and head in self.files.names
        if has_both and not torch.equal(self.files.stored(head), self.files.stored(tokens)):
            raise ValueError(
                f"{self.files.source}: found other numbers in {head} than in {tokens}, but "
                "tie_word_embeddings in config.json says that they are one. Set it to false if "
                "the head was trained on its own; else remove the tensor."
            )
        decoder = empty_decoder(self.config, dtype)
        for entry in self.entries:
            fill(decoder, entry.ours, entry.to_ours(self.files.tensor), str(self.files.source))
        return decoder
