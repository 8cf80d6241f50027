"""Tokenizers that come with published models, with their special tokens in our roles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_CONFIG = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 64 << 20
_CONTROL_TOKENS = (3, 4)
"""GGUF's token types of tokens that no text contains: control, and defined by the user."""


def special_tokens_of(directory: Path) -> dict[str, str]:
    """What a Hugging Face directory calls its special tokens.

    Args:
        directory: may hold tokenizer_config.json.

    Returns:
        Tokens by role (`bos`, `eos`, `pad`); empty without such a file.
    """
    path = directory / _CONFIG
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found = {}
    for role in ("bos", "eos", "pad"):
        token = content.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def rename_special_tokens(
    backend: tokenizers.Tokenizer, found: Mapping[str, str], wanted: Mapping[str, str]
) -> tokenizers.Tokenizer:
    """Gives a model's own special tokens the names that they have here, under their ids.

    A decoder has learned what its end of text means; a new token beside it would begin from
    nothing. A token of several roles takes the first of eos, bos and pad; the other roles get
    new tokens.

    Example: Qwen's `<|endoftext|>` (eos and pad) becomes `<|eos|>`, and `<|pad|>` will be new.

    Args:
        backend: is left as it is.
        found: the model's tokens by role.
        wanted: our names by role.

    Returns:
        The renamed tokenizer, without a post-processor: what it would add is added here.
    """
    renamed: dict[str, str] = {}
    for role in ("eos", "bos", "pad"):
        token = found.get(role)
        if token is None or backend.token_to_id(token) is None:
            continue
        if backend.token_to_id(wanted[role]) is None:
            renamed.setdefault(token, wanted[role])
    content = json.loads(backend.to_str())
    for added in content["added_tokens"]:
        added["content"] = renamed.get(added["content"], added["content"])
    vocabulary = content["model"].get("vocab")
    if isinstance(vocabulary, dict):
        content["model"]["vocab"] = {renamed.get(k, k): number for k, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # with scores, in the order of the ids
        content["model"]["vocab"] = [[renamed.get(k, k), score] for k, score in vocabulary]
    content["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def tokenizer_from_gguf(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The byte-level BPE in a GGUF file.

    Args:
        path: the file.

    Returns:
        The tokenizer, and its special tokens by role.

    Raises:
        ValueError: no readable GGUF file, or another kind of tokenizer.
    """
    fields = _gguf_fields(path)
    kind, variant = str(fields["model"]), str(fields.get("pre", "default"))
    if kind != "gpt2" or variant not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{path}: found a tokenizer {kind}/{variant}, expected gpt2 with one of "
            f"{', '.join(_PRE_TOKENIZERS)}. Name the model's tokenizer.json as tokenizer.file."
        )
    try:
        tokens: list[str] = fields["tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = _PRE_TOKENIZERS[variant]()
        backend.decoder = decoders.ByteLevel()
        types = fields.get("token_type", [])
        special = [t for t, kind in zip(tokens, types, strict=False) if kind in _CONTROL_TOKENS]
        backend.add_special_tokens([AddedToken(token, special=True) for token in special])
        ids = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}
        roles = {role: tokens[fields[key]] for role, key in ids.items() if key in fields}
    except Exception as error:  # tokenizers raises nothing more precise
        found = f"found a tokenizer that cannot be built ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {found}, expected tokens, merges and types that fit.") from error
    return backend, roles


def _gguf_fields(path: Path) -> dict[str, Any]:
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{path}: reading GGUF needs the package gguf; install mm1-pipeline[gguf]."
        ) from error
    try:
        prefix = "tokenizer.ggml."
        fields = {
            key.removeprefix(prefix): field.contents()
            for key, field in gguf.GGUFReader(path).fields.items()
            if key.startswith(prefix)
        }
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"{path}: found no readable GGUF file ({error}).") from error
    if missing := [key for key in ("model", "tokens", "merges") if key not in fields]:
        raise ValueError(f"{path}: found no {prefix}{missing[0]}, expected a tokenizer in it.")
    return fields


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_and_byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_PRE_TOKENIZERS = {"default": _byte_level, "gpt-2": _byte_level, "smollm": _digits_and_byte_level}
"""GGUF's names of ways to cut text before BPE."""
