"""Decoders from GGUF files, as llama.cpp and Ollama ship them; weights are dequantised.

Needs the package `gguf` (the extra `gguf` of this project), which reads the container and knows
the quantised formats. Every key of the metadata and every tensor is read, known to change
nothing, or refused by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1_pipeline.config._base import MOST_LAYERS
from mm1_pipeline.config.model import (
    DecoderConfig,
    MoEConfig,
    QKNorm,
    RopeScaling,
    RopeScalingKind,
)
from mm1_pipeline.models.convert.accounting import Fields, Reason, check_tensors
from mm1_pipeline.models.convert.filling import empty_decoder, fill
from mm1_pipeline.models.convert.tensor_names import Entry, Join
from mm1_pipeline.models.decoder import Decoder, stretched

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""`llama` are also Mistral, SmolLM and (with experts) Mixtral."""

_LLAMA3 = RopeScaling(
    kind=RopeScalingKind.LLAMA3,
    factor=8.0,
    low_frequency_factor=1.0,
    high_frequency_factor=4.0,
    original_max_positions=8192,
)
"""Llama 3.1's (3.2's has the factor 32); a GGUF file holds only what follows from it."""


def import_gguf(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder from a GGUF file.

    Args:
        path: the file.
        dtype: of the weights in memory; what the file rounds to 4 bits stays rounded.

    Raises:
        ValueError: no readable GGUF file, another architecture, an option that would give other
            results here, or tensors that do not fit.
    """
    file = _GGUFFile(path)
    config = _checked_config(file)
    decoder = empty_decoder(config, dtype)
    for entry in _entries(file, config):
        fill(decoder, entry.ours, entry.to_ours(file.tensor), str(path))
    return decoder


def gguf_config(path: Path) -> DecoderConfig:
    """The shape that `import_gguf` would give a decoder; names of tensors are checked.

    Args:
        path: the file.

    Raises:
        ValueError: as `import_gguf`.
    """
    return _checked_config(_GGUFFile(path))


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
        self.path = path
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self._reader.get_field("general.architecture")
        self.architecture = None if architecture is None else str(architecture.contents())

    def metadata(self) -> dict[str, Any]:
        """All keys with their values, but the tokenizer's, which may be long."""
        return {
            name: field.contents()
            for name, field in self._reader.fields.items()
            if not name.startswith(("GGUF.", "tokenizer."))
        }

    def num_rows(self, name: str) -> int:
        """Rows of a tensor, without reading it."""
        if name not in self.tensors:
            raise ValueError(f"{self.path}: found no tensor {name!r}; the file is incomplete.")
        return int(self.tensors[name].shape[-1])

    def tensor(self, name: str) -> Tensor:
        """float32, rows first."""
        tensor = self.tensors[name]
        try:
            values = self._dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path}: found {name} stored as {tensor.tensor_type.name}, which the package "
                "gguf does not read. Take a file with another quantisation."
            ) from error
        return torch.from_numpy(values.astype("float32"))


def _checked_config(file: _GGUFFile) -> DecoderConfig:
    try:
        config = _config(file)
    except (TypeError, ValueError, OverflowError) as error:
        named = str(error).startswith(str(file.path))
        raise ValueError(str(error) if named else f"{file.path}: {error}") from error

    def reason_to_skip(name: str) -> Reason | None:
        return "read with the configuration" if name == "rope_freqs.weight" else None

    needed = [name for entry in _entries(file, config) for name in entry.theirs]
    check_tensors(file.path, file.tensors, needed, "this decoder", reason_to_skip)
    return config


def _config(file: _GGUFFile) -> DecoderConfig:
    metadata = file.metadata()
    architecture = file.architecture
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{file.path}, general.architecture: found {architecture!r}, expected one of "
            f"{', '.join(_ARCHITECTURES)}. Import the model's Hugging Face directory instead."
        )
    general = Fields(metadata, str(file.path))
    general.expect("general.type", "model")
    general.expect("split.count", 0, 1)
    # Who made it, and how it was quantised.
    harmless = ("general.", "quantize.", "split.", f"{architecture}.")
    general.skip(name for name in metadata if name.startswith(harmless))
    general.finish()

    prefix = f"{architecture}."
    own = {name.removeprefix(prefix): x for name, x in metadata.items() if name.startswith(prefix)}
    fields = Fields(own, f"{file.path}, {architecture}")
    rows = file.num_rows("token_embd.weight")
    d_model, num_heads = fields.number("embedding_length"), fields.number("attention.head_count")
    head_dim = fields.number("attention.key_length", d_model // num_heads)
    fields.expect("vocab_size", rows)
    fields.expect("attention.value_length", head_dim)
    fields.expect("rope.dimension_count", head_dim)
    fields.expect("attention.sliding_window", 0)
    fields.expect("attention.causal", True)
    fields.expect("tensor_data_layout", "Meta AI original pth")
    fields.skip(("context_length",))
    config = DecoderConfig(
        vocab_size=rows,
        d_model=d_model,
        num_layers=fields.count("block_count", MOST_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.number("attention.head_count_kv", num_heads),
        d_ff=fields.number("feed_forward_length"),
        rope_theta=_shortest(fields.number("rope.freq_base", 10_000.0)),
        norm_eps=_shortest(fields.number("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in file.tensors,
        d_head=None if head_dim * num_heads == d_model else head_dim,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        feed_forward_bias="blk.0.ffn_up.bias" in file.tensors,
        qk_norm=QKNorm.PER_HEAD if architecture == "qwen3" else QKNorm.NONE,
        moe=_moe(fields, architecture),
    )
    scaling = _scaling(fields)
    if "rope_freqs.weight" in file.tensors:
        if scaling is not None:
            raise fields.refusal("rope.scaling.type", scaling.kind.value, "none, as rope_freqs")
        scaling = _of_factors(file, config)
    fields.finish()
    return dataclasses.replace(config, rope_scaling=scaling)


def _moe(fields: Fields, architecture: str) -> MoEConfig | None:
    fields.expect("expert_used_count", *range(1, 1024))
    count = fields.number("expert_count", 0)
    if not count:
        return None
    if architecture != "llama":
        raise fields.refusal("expert_count", count, "none; only Mixtral's experts are read")
    return MoEConfig(
        num_experts=count,
        top_k=fields.number("expert_used_count"),
        d_ff=fields.read("expert_feed_forward_length"),
    )


def _scaling(fields: Fields) -> RopeScaling | None:
    kind = fields.read("rope.scaling.type", "none")
    fields.expect("rope.scale_linear", 1.0)
    fields.expect("rope.scaling.attn_factor", 1.0)
    # What the model was trained with, beside the kind and the factor that it is used with.
    fields.skip(("rope.scaling.original_context_length", "rope.scaling.finetuned"))
    match kind:
        case "none":
            fields.expect("rope.scaling.factor", 1.0, 0.0)
            return None
        case "linear":
            factor = _shortest(fields.number("rope.scaling.factor"))
            return RopeScaling(kind=RopeScalingKind.LINEAR, factor=factor)
        case other:
            raise fields.refusal("rope.scaling.type", other, "'none' or 'linear'")


def _of_factors(file: _GGUFFile, config: DecoderConfig) -> RopeScaling | None:
    """The stretching whose factors the file holds: 1 for each wavelength, or Llama 3's."""
    factors = file.tensor("rope_freqs.weight")
    scaling = dataclasses.replace(_LLAMA3, factor=float(round(float(factors.max()))))
    periods = config.rope_theta ** (torch.arange(len(factors)) * 2.0 / config.head_dim)
    if len(factors) == config.head_dim // 2:
        if torch.equal(factors, torch.ones_like(factors)):
            return None
        if torch.allclose(stretched(periods, scaling) / periods, factors, rtol=1e-4, atol=0):
            return scaling
    raise ValueError(
        f"{file.path}, rope_freqs.weight: found wavelengths stretched otherwise than Llama 3.1 "
        "does it, which are not read from GGUF. Import the model's Hugging Face directory instead."
    )


def _entries(file: _GGUFFile, config: DecoderConfig) -> Iterator[Entry]:
    yield Entry("embedding.weight", ("token_embd.weight",))
    yield Entry("final_norm.weight", ("output_norm.weight",))
    if not config.tie_embeddings:
        yield Entry("head.weight", ("output.weight",))
    num_turned = config.num_heads + config.num_kv_heads

    def half_split(qkv: Tensor) -> Tensor:
        """llama.cpp turns neighbouring dimensions of a Llama's head, and orders rows for that;
        here, as in transformers, dimension i is turned with i + E / 2.
        """
        heads = qkv.unflatten(0, (-1, config.head_dim))
        pairs = heads[:num_turned].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return torch.cat([pairs, heads[num_turned:]]).flatten(0, 1)

    change = half_split if file.architecture == "llama" else None
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"blk.{index}"
        yield Entry(f"{ours}.attention_norm.weight", (f"{theirs}.attn_norm.weight",))
        yield Entry(f"{ours}.feed_forward_norm.weight", (f"{theirs}.ffn_norm.weight",))
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            joined = tuple(f"{theirs}.attn_{name}.{kind}" for name in "qkv")
            yield Entry(f"{ours}.attention.qkv.{kind}", joined, change=change)
        for kind in ("weight", "bias") if config.output_bias else ("weight",):
            yield Entry(f"{ours}.attention.output.{kind}", (f"{theirs}.attn_output.{kind}",))
        if config.qk_norm is QKNorm.PER_HEAD:
            for name in ("q_norm", "k_norm"):
                yield Entry(f"{ours}.attention.{name}.weight", (f"{theirs}.attn_{name}.weight",))
        if config.moe is not None:
            yield from _experts(file, config.moe.num_experts, f"{ours}.feed_forward", theirs)
            continue
        for kind in ("weight", "bias") if config.feed_forward_bias else ("weight",):
            for name in ("gate", "up", "down"):
                yield Entry(f"{ours}.feed_forward.{name}.{kind}", (f"{theirs}.ffn_{name}.{kind}",))


def _experts(file: _GGUFFile, num_experts: int, ours: str, theirs: str) -> Iterator[Entry]:
    """Stacked in one tensor; older files have one for each."""
    yield Entry(f"{ours}.router.weight", (f"{theirs}.ffn_gate_inp.weight",))
    for name in ("gate", "up", "down"):
        stacked = f"{theirs}.ffn_{name}_exps.weight"
        if stacked in file.tensors:
            yield Entry(f"{ours}.experts.{name}", (stacked,))
        else:
            single = (f"{theirs}.ffn_{name}.{expert}.weight" for expert in range(num_experts))
            yield Entry(f"{ours}.experts.{name}", tuple(single), Join.STACK)


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")
