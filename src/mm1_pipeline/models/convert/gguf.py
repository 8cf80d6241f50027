"""Llama decoders from GGUF files, as llama.cpp and Ollama ship them; weights are dequantised.

Needs the package `gguf` (the extra `gguf` of this project), which reads the container and knows
the quantised formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.convert.filling import empty_decoder, fill
from mm1_pipeline.models.decoder import Decoder

_LAYER_NAMES = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.output.weight": "attn_output.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
    "feed_forward.gate.weight": "ffn_gate.weight",
    "feed_forward.up.weight": "ffn_up.weight",
    "feed_forward.down.weight": "ffn_down.weight",
}


def import_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder from a GGUF file of the architecture `llama`.

    Args:
        path: the file.
        dtype: of the weights in memory; what the file rounds to 4 bits stays rounded.

    Raises:
        ValueError: no readable GGUF file, another architecture, or tensors that do not fit.
    """
    file = _GGUFFile(path)
    try:
        config = _config(file)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    decoder = empty_decoder(config, dtype)
    for ours, values in _weights(file, config):
        fill(decoder, ours, values, str(path))
    if unread := file.unread():
        raise ValueError(
            f"{path}: found {len(unread)} tensors that a Llama decoder does not have, such as "
            f"{unread[0]!r}. Import the model's Hugging Face directory instead."
        )
    return decoder


class _GGUFFile:
    """Metadata and dequantised tensors by name."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise ValueError(
                f"{path}: reading GGUF needs the package gguf; install mm1-pipeline[gguf]."
            ) from error
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: found no readable GGUF file ({error}).") from error
        self._dequantize = gguf.dequantize
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def value(self, key: str) -> Any:
        """Metadata under a key."""
        field = self._reader.get_field(key)
        if field is None:
            raise ValueError(f"found no {key} in its metadata.")
        return field.contents()

    def tensor(self, name: str) -> Tensor:
        """float32, rows first."""
        if name not in self._tensors:
            raise ValueError(f"{self._path}: found no tensor {name!r}; the file is incomplete.")
        self._read.add(name)
        tensor = self._tensors[name]
        return torch.from_numpy(self._dequantize(tensor.data, tensor.tensor_type).copy())

    def unread(self) -> list[str]:
        """Names of tensors that nobody asked for; frequencies are computed, not read."""
        return sorted(self._tensors.keys() - self._read - {"rope_freqs.weight"})


def _config(file: _GGUFFile) -> DecoderConfig:
    architecture = file.value("general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"general.architecture: found {architecture!r}, expected 'llama'. Import the model's "
            "Hugging Face directory instead."
        )
    if "rope_freqs.weight" in file:
        raise ValueError(
            "rope_freqs.weight: found stretched wavelengths (Llama 3.1), which are not read from "
            "GGUF. Import the model's Hugging Face directory instead."
        )
    num_heads = file.value("llama.attention.head_count")
    return DecoderConfig(
        vocab_size=len(file.value("tokenizer.ggml.tokens")),
        d_model=file.value("llama.embedding_length"),
        num_layers=file.value("llama.block_count"),
        num_heads=num_heads,
        num_kv_heads=file.value("llama.attention.head_count_kv"),
        d_ff=file.value("llama.feed_forward_length"),
        rope_theta=_shortest(file.value("llama.rope.freq_base")),
        norm_eps=_shortest(file.value("llama.attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in file,
    )


def _weights(file: _GGUFFile, config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    yield "embedding.weight", file.tensor("token_embd.weight")
    yield "final_norm.weight", file.tensor("output_norm.weight")
    if not config.tie_embeddings:
        yield "head.weight", file.tensor("output.weight")
    for index in range(config.num_layers):
        for ours, theirs in _LAYER_NAMES.items():
            yield f"layers.{index}.{ours}", file.tensor(f"blk.{index}.{theirs}")
        q, k, v = (file.tensor(f"blk.{index}.attn_{name}.weight") for name in "qkv")
        qkv = [_half_split(q, config.head_dim), _half_split(k, config.head_dim), v]
        yield f"layers.{index}.attention.qkv.weight", torch.cat(qkv)


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """llama.cpp turns neighbouring dimensions of a head, and orders rows for that; here, as in
    transformers, dimension i is turned with i + E / 2.
    """
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")
