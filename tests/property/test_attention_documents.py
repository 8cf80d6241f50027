"""Packed attention against the definition of causal attention with a document mask."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm1_pipeline.models import attention_kernels
from mm1_pipeline.models.attention import DocumentLayout, packed_attention
from mm1_pipeline.models.attention_kernels import (
    Kernel,
    choose_kernel,
    document_block_mask,
    flex_packed_attention,
    varlen_attention,
)

TOLERANCE = 1e-12
"""float64; worst seen 2.7e-15."""

lengths_of_documents = st.lists(
    st.one_of(st.integers(0, 6), st.integers(0, 40)), min_size=1, max_size=16
).filter(lambda lengths: sum(lengths) > 0)
heads = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)])


def borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)


def document_mask(lengths: list[int]) -> Tensor:
    """bool[P, P]: earlier positions of the own document."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    return (document[:, None] == document) & (place[:, None] >= place)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """softmax(q k / sqrt(E)) v over the earlier positions of the own document, written out."""
    visible = document_mask(lengths)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("phe,she->hps", q, k) / math.sqrt(q.shape[-1])
    shares = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hps,she->phe", shares, v)


def problem(lengths: list[int], heads: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    return tuple(
        torch.randn(sum(lengths), count, 4, generator=generator, dtype=torch.float64)
        for count in (num_heads, num_kv_heads, num_kv_heads, num_heads)
    )


def with_gradients(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: list[Tensor], upstream: Tensor
) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in qkv)
    result = attention(q, k, v)
    return [result.detach(), *torch.autograd.grad(result, (q, k, v), upstream)]


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, heads, st.integers(0, 99))
def test_equals_the_masked_definition(
    lengths: list[int], heads: tuple[int, int], seed: int
) -> None:
    *qkv, upstream = problem(lengths, heads, seed)
    layout = DocumentLayout.from_cu_seqlens(borders(lengths), sum(lengths))
    found = with_gradients(lambda q, k, v: packed_attention(q, k, v, layout), qkv, upstream)
    expected = with_gradients(lambda q, k, v: masked_attention(q, k, v, lengths), qkv, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@settings(max_examples=30, deadline=None)
@given(lengths_of_documents, st.data())
def test_nothing_is_seen_across_documents(lengths: list[int], data: st.DataObject) -> None:
    """Not even a NaN passes a border, which a mask of large negative scores would let through."""
    place = data.draw(st.integers(0, sum(lengths) - 1))
    q, k, v, _ = problem(lengths, (2, 1), 0)
    k[place] = v[place] = math.nan
    layout = DocumentLayout.from_cu_seqlens(borders(lengths), sum(lengths))
    isnan = packed_attention(q, k, v, layout).isnan().flatten(1).any(-1)
    reached = set(isnan.nonzero().flatten().tolist())
    cuts = borders(lengths).tolist()
    start, end = next(cut for cut in pairwise(cuts) if cut[0] <= place < cut[1])
    assert set(range(place, end)) <= reached <= set(range(start, end))


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents)
def test_every_position_is_computed_once(lengths: list[int]) -> None:
    layout = DocumentLayout.from_cu_seqlens(borders(lengths), sum(lengths))
    places = layout.packed_to_padded
    assert torch.equal(layout.padded_to_packed[places], torch.arange(sum(lengths)))
    assert len(layout.padded_to_packed) == sum(count * size for count, size in layout.buckets)
    assert sum(bucket.num_documents for bucket in layout.buckets) == sum(map(bool, lengths))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_padding_is_bounded(lengths: list[int]) -> None:
    """A document shorter than 4/5 of its bucket is at most 4 shorter."""
    layout = DocumentLayout.from_cu_seqlens(borders(lengths), sum(lengths))
    padded = len(layout.padded_to_packed)
    assert padded <= sum(max(length / 0.8, length + 4) for length in lengths)


@pytest.mark.parametrize(
    "cu_seqlens", [[], [0], [1, 9], [0, 8], [0, 10], [0, 5, 3, 9], [-1, 9], [*range(9), 8]]
)
def test_borders_must_rise_from_zero_to_the_end(cu_seqlens: list[int]) -> None:
    with pytest.raises(ValueError, match=r"Found cu_seqlens .*rise from 0 to 9"):
        DocumentLayout.from_cu_seqlens(torch.tensor(cu_seqlens, dtype=torch.int32), 9)


def test_an_empty_batch_is_empty() -> None:
    layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, 0]), 0)
    assert layout.buckets == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_the_block_mask_is_the_document_mask(lengths: list[int]) -> None:
    """Its blocks are those that hold a visible position, its full ones those that hold no other."""
    total = sum(lengths)
    found = document_block_mask(borders(lengths).numpy().astype("int64"), "cpu")
    visible = document_mask(lengths)
    num_blocks = -(-total // 128)
    padded = visible.new_zeros(num_blocks * 128, num_blocks * 128)
    padded[:total, :total] = visible
    num_sub_images = padded.unflatten(0, (num_blocks, 128)).unflatten(2, (num_blocks, 128))
    holds, full = num_sub_images.any(3).any(1), num_sub_images.all(3).all(1)
    assert torch.equal(found.to_dense()[0, 0].bool(), holds)
    counts, columns = found.full_kv_num_blocks, found.full_kv_indices
    assert counts is not None
    assert columns is not None
    for row, (count, order) in enumerate(zip(counts[0, 0], columns[0, 0], strict=True)):
        assert set(order[:count].tolist()) == set(full[row].nonzero().flatten().tolist())


@pytest.mark.parametrize("lengths", [[128, 128], [1], [300], [5, 120, 3, 260], [1] * 140])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_flex_attention_equals_the_masked_definition(
    lengths: list[int], heads: tuple[int, int]
) -> None:
    """Uncompiled, on a CPU, forward only: what it has no more of there."""
    q, k, v, _ = problem(lengths, heads, 0)
    layout = DocumentLayout.from_cu_seqlens(borders(lengths), sum(lengths))
    found = flex_packed_attention(q, k, v, layout.block_mask, compiled=False)
    # Worst seen: 1.3e-15.
    torch.testing.assert_close(found, masked_attention(q, k, v, lengths), atol=1e-12, rtol=0)


def test_a_cpu_gets_buckets_and_no_kernel_is_assumed_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available: set[str] = set()
    monkeypatch.setattr(
        "mm1_pipeline.models.attention_kernels._has_module", lambda name: name in available
    )
    assert choose_kernel("cpu", torch.float32) == Kernel.BUCKETS
    assert choose_kernel("cuda", torch.bfloat16) == Kernel.BUCKETS
    available.add("triton")
    assert choose_kernel("cuda", torch.bfloat16) == Kernel.FLEX
    available.add("torch.nn.attention.varlen")
    assert choose_kernel("cuda", torch.bfloat16) == Kernel.VARLEN
    assert choose_kernel("cuda", torch.float32) == Kernel.FLEX
    assert choose_kernel("cpu", torch.bfloat16) == Kernel.BUCKETS


@pytest.mark.parametrize("version", ["2.10", "2.11", "2.12"])
def test_each_version_of_varlen_is_called_as_it_wants(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins with the signatures of the three versions, which compute the definition."""
    lengths = [3, 1, 5]

    def attend(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, sizes: tuple) -> Tensor:
        assert cu_q.tolist() == cu_k.tolist() == [0, 3, 4, 9]
        assert cu_q.dtype == torch.int32
        assert sizes == (5, 5)
        return masked_attention(q, k, v, lengths)

    def of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        assert is_causal
        assert k.shape == q.shape
        return attend(q, k, v, cu_seq_q, cu_seq_k, (max_q, max_k))

    def of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert window_size == (-1, 0)
        assert k.shape == q.shape
        return attend(q, k, v, cu_seq_q, cu_seq_k, (max_q, max_k))

    def of_2_12(
        q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False
    ):
        assert window_size == (-1, 0)
        assert enable_gqa
        assert k.shape[1] == 1
        return attend(q, k, v, cu_seq_q, cu_seq_k, (max_q, max_k))

    kernel = {"2.10": of_2_10, "2.11": of_2_11, "2.12": of_2_12}[version]
    module = types.SimpleNamespace(varlen_attn=kernel)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    attention_kernels._varlen_kernel.cache_clear()
    try:
        q, k, v, _ = problem(lengths, (2, 1), 0)
        layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, 3, 3, 4, 9]), 9)
        found = varlen_attention(q, k, v, layout.cu_seqlens, layout.max_length)
    finally:
        attention_kernels._varlen_kernel.cache_clear()
    assert torch.equal(found, masked_attention(q, k, v, lengths))
