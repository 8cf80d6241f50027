"""Packed attention against the definition of causal attention with a document mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm1_pipeline.models.attention import DocumentLayout, packed_attention

TOLERANCE = 1e-12
"""float64; worst seen 2.7e-15."""

lengths_of_documents = st.lists(
    st.one_of(st.integers(0, 6), st.integers(0, 40)), min_size=1, max_size=16
).filter(lambda lengths: sum(lengths) > 0)
heads = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)])


def borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """softmax(q k / sqrt(E)) v over the earlier positions of the own document, written out."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    visible = (document[:, None] == document) & (place[:, None] >= place)
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
