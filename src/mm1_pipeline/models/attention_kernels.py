"""The kernels behind packed attention, and which one a device gets.

| device, type | kernel |
|---|---|
| CUDA, bfloat16 or float16, PyTorch 2.10 or later | `torch.nn.attention.varlen`: reads borders |
| CUDA, otherwise | compiled `flex_attention` with a block mask made once a batch |
| any other | torch's causal attention over buckets of documents (`models/attention.py`) |

The block mask and flex attention are tested on a CPU (uncompiled) against the definition. The
two CUDA kernels themselves have not been run on a GPU yet: see docs/adr/0011.

Shape letters: P positions of a flattened batch, H query heads, K key-value heads (K divides
H), E dimensions of a head.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:  # importing it takes a second, which a CPU never needs
    from torch.nn.attention.flex_attention import BlockMask

MASK_BLOCK = 128
"""Positions along a side of a block of the mask; flex attention's own default."""


class Kernel(StrEnum):
    """How packed attention is computed."""

    BUCKETS = "buckets"
    VARLEN = "varlen"
    FLEX = "flex"


def choose_kernel(device_type: str, dtype: torch.dtype) -> Kernel:
    """The best kernel that this installation has for a device and a type.

    Args:
        device_type: `cpu`, `cuda`, ...
        dtype: the queries', which decides whether a fused kernel takes them.
    """
    if device_type != "cuda":
        return Kernel.BUCKETS
    if dtype in (torch.bfloat16, torch.float16) and _has_module("torch.nn.attention.varlen"):
        return Kernel.VARLEN
    # flex_attention without a compiler writes all P * P scores: buckets are better than that.
    return Kernel.FLEX if _has_module("triton") else Kernel.BUCKETS


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_length: int
) -> Tensor:
    """Causal attention by a kernel that takes the borders themselves.

    Args:
        q: bfloat16 or float16[P, H, E] on CUDA.
        k: [P, K, E], of the same type.
        v: [P, K, E], of the same type.
        cu_seqlens: int32[num_documents + 1] on the same device, without empty documents.
        max_length: positions of the longest document.

    Returns:
        [P, H, E], of the same type.
    """
    kernel, options, groups_heads = _varlen_kernel()
    if not groups_heads and k.shape[1] != q.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return kernel(q, k, v, cu_seqlens, cu_seqlens, max_length, max_length, **options)


def flex_packed_attention(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, *, compiled: bool = True
) -> Tensor:
    """Causal attention by flex attention, which skips the blocks that the mask leaves out.

    Args:
        q: float[P, H, E].
        k: float[P, K, E].
        v: float[P, K, E].
        block_mask: from `document_block_mask`.
        compiled: False writes all scores, which is for tests only.

    Returns:
        float[P, H, E].
    """
    attend = _flex(compiled)
    by_head = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    attended = attend(*by_head, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])
    return attended.squeeze(0).transpose(0, 1)


def document_block_mask(borders: NDArray[np.int64], device: torch.device | str) -> BlockMask:
    """The blocks of a causal document mask, straight from the borders.

    Which blocks hold anything follows from where documents begin, so the P * P mask is never
    written, not even as booleans.

    Example with blocks of 4 and documents of 6 and 6 positions: block row 0 sees block 0 (cut
    by the diagonal); row 1 sees 0 and 1 (its first half belongs to the first document); row 2
    sees 1 and 2. A block is full, and needs no mask, if it lies below the diagonal within one
    document.

    Args:
        borders: int64[num_documents + 1], rising from 0 to P > 0, without empty documents.
        device: where the mask is used.
    """
    from torch.nn.attention.flex_attention import BlockMask

    num_positions = int(borders[-1])
    starts = np.arange(0, num_positions, MASK_BLOCK)
    ends = np.minimum(starts + MASK_BLOCK, num_positions) - 1
    first, last = (np.searchsorted(borders, place, side="right") - 1 for place in (starts, ends))
    lowest = borders[first] // MASK_BLOCK
    row, column = np.arange(len(starts))[:, None], np.arange(len(starts))
    holds = (column >= lowest[:, None]) & (column <= row)
    one_document = (first[:, None] == first) & (first == last) & (first == last)[:, None]
    whole = (ends - starts + 1 == MASK_BLOCK)[:, None]  # the last row may be cut by P
    full = holds & one_document & (column < row) & whole
    documents = torch.from_numpy(
        np.repeat(np.arange(len(borders) - 1, dtype=np.int32), np.diff(borders))
    ).to(device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[query] == documents[key])

    return BlockMask.from_kv_blocks(
        *_sparse(holds & ~full, device),
        *_sparse(full, device),
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=visible,
        seq_lengths=(num_positions, num_positions),
    )


def _sparse(blocks: NDArray[np.bool_], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their columns first in a row of all columns."""
    counts = torch.from_numpy(blocks.sum(1, dtype=np.int32))
    columns = torch.from_numpy(np.argsort(~blocks, axis=1, kind="stable").astype(np.int32))
    return counts[None, None].to(device), columns[None, None].to(device)


@cache
def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _varlen_kernel() -> tuple[Callable[..., Tensor], dict[str, Any], bool]:
    """The kernel, how its version is told to be causal, and whether it groups heads itself."""
    kernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(kernel).parameters
    causal = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    groups_heads = "enable_gqa" in known
    return kernel, {**causal, **({"enable_gqa": True} if groups_heads else {})}, groups_heads


@cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    chosen = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return cast("Callable[..., Tensor]", chosen)
