"""Looks at a decoder that is to be imported without reading its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.assembly import check_same
from mm1_pipeline.models.checkpoint import is_saved_decoder
from mm1_pipeline.models.convert.decoder import imported_config


def check_decoder_file(source: Path, decoder: DecoderConfig) -> None:
    """Refuses a file that does not hold the wanted decoder, as far as its configuration tells.

    The names of its tensors are checked too.

    Args:
        source: what `text_pretrain.path` names.
        decoder: the decoder that is wanted; its vocabulary may have more tokens.

    Raises:
        ValueError: it is missing, its config describes another decoder, or has
            fields or tensors that are not known.
    """
    if not source.exists():
        raise ValueError(
            f"text_pretrain.path: found nothing at {str(source)!r}, expected a decoder in the "
            "layout of transformers, or a GGUF file."
        )
    is_gguf = source.suffix == ".gguf"
    if is_saved_decoder(source) or not (is_gguf or (source / "config.json").is_file()):
        return
    found = imported_config(source, vocab_size=decoder.vocab_size)
    # How it is trained from here on is not the file's to say.
    found = dataclasses.replace(found, output_z_weight=decoder.output_z_weight)
    check_same("decoder", found, decoder, source)
