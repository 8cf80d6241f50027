"""Causal attention over packed documents, and over a key-value cache.

`packed_attention` picks the kernel by the device of its inputs (`models/attention_kernels.py`);
nothing else knows how it is computed. On a CPU that is torch's fused causal attention over
buckets of documents.

Shape letters: P positions of a flattened batch, H query heads, K key-value heads (K divides
H), E dimensions of a head, B rows, S new positions of a row, C slots of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mm1_pipeline.models.attention_kernels import (
    Kernel,
    choose_kernel,
    document_block_mask,
    flex_packed_attention,
    varlen_attention,
)
from mm1_pipeline.models.fused_attention import fused_attention
from mm1_pipeline.models.rows import pad_rows, take_rows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Attend(Protocol):
    """How a layer's positions look at each other. Training passes packed attention, generation a
    cache.
    """

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None, /
    ) -> Tensor:
        """Maps q[P, H, E], k[P, K, E], v[P, K, E] to [P, H, E].

        Args:
            layer: counted from 0.
            q: float[P, H, E], queries.
            k: float[P, K, E], keys; K divides H.
            v: float[P, K, E], values.
            window: positions that are seen, the own one included; None is all before.
        """
        ...


_SHORTEST_SHARE = 0.8
_SLACK = 4
"""A document joins a bucket if it is at least 4/5 as long as the bucket's longest, or at most
four positions shorter. Our choice, measured on a CPU: 313 documents of mean length 20 make 12
buckets with 12 % padding; 9 to 20 buckets take the same time, 7 take 30 % longer (padding), one
a length is no faster and starts 61 kernels where a GPU would rather start 12."""


class Bucket(NamedTuple):
    """Documents of about one length, padded to it and computed together."""

    num_documents: int
    length: int


class DocumentLayout:
    """Where the documents of a flattened batch lie, and what each kernel needs to know of it.

    Made once a batch, used by every layer; a kernel's plan is made when it is first asked for.

    For buckets, documents are sorted by length and cut where lengths differ much; a bucket is
    padded at the documents' ends, where causal attention never looks, so it needs no mask.

    Args:
        borders: int64[num_documents + 1], 0, rising, P; empty documents are left out.
        device: where the plans are used.
    """

    def __init__(self, borders: NDArray[np.int64], device: torch.device | str) -> None:
        self._borders = borders[np.append(np.diff(borders) > 0, True)]
        self._device = device

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens: Tensor, num_positions: int, device: torch.device | str | None = None
    ) -> DocumentLayout:
        """Checks borders and brings them where they are used.

        Example: cu_seqlens [0, 2, 7, 9] are documents of 2, 5 and 2 positions; they make the
        buckets (1 document of 5) and (2 documents of 2), without padding.

        Args:
            cu_seqlens: int[num_documents + 1], borders of the documents: 0, rising, P. Equal
                neighbours (an empty document) are allowed.
            num_positions: P, the positions of the flattened batch.
            device: where the plan will be used; None takes cu_seqlens' device.

        Raises:
            ValueError: cu_seqlens do not cover the positions in order.
        """
        device = cu_seqlens.device if device is None else device
        borders = cu_seqlens.cpu().numpy().astype(np.int64)
        _check_borders(borders, num_positions)
        return cls(borders, device)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """In the order in which they lie in the padded positions."""
        return self._padding[0]

    @property
    def padded_to_packed(self) -> Tensor:
        """int64[sum of num_documents * length]; the packed position behind each padded one.

        A pad repeats its document's first position.
        """
        return self._padding[1]

    @property
    def packed_to_padded(self) -> Tensor:
        """int64[P]; the padded position of each packed one."""
        return self._padding[2]

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32[num_documents + 1], without empty documents."""
        return torch.from_numpy(self._borders.astype(np.int32)).to(self._device)

    @cached_property
    def max_length(self) -> int:
        """Positions of the longest document."""
        return int(np.diff(self._borders).max(initial=0))

    @cached_property
    def block_mask(self) -> BlockMask:
        """Blocks that hold visible positions, for flex attention."""
        return document_block_mask(self._borders, self._device)

    @cached_property
    def _padding(self) -> tuple[tuple[Bucket, ...], Tensor, Tensor]:
        buckets, to_packed, to_padded = _plan(self._borders)
        to_packed, to_padded = (torch.from_numpy(rows) for rows in (to_packed, to_padded))
        return buckets, to_packed.to(self._device), to_padded.to(self._device)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: DocumentLayout, window: int | None = None
) -> Tensor:
    """Causal attention inside each document; nothing is seen across documents.

    With documents of 2 and 3 positions (cu_seqlens [0, 2, 5]) a row's position sees the columns'
    marked x; with a window of 2, those marked o no longer:

        x . . . .
        x x . . .
        . . x . .
        . . x x .
        . . o x x

    Source: MM1, Packing ("attention never crosses example borders within a sequence").

    Args:
        q: float[P, H, E].
        k: float[P, K, E]; query head h reads key-value head h // (H / K).
        v: float[P, K, E].
        layout: documents of the P positions.
        window: positions that are seen, the own one included; None is all before. Where a
            document is longer, the kernel is the buckets', on every device.

    Returns:
        float[P, H, E].
    """
    if window is not None and window < layout.max_length:
        return bucketed_attention(q, k, v, layout, window)
    match choose_kernel(q.device.type, q.dtype) if len(q) else Kernel.BUCKETS:
        case Kernel.BUCKETS:
            return bucketed_attention(q, k, v, layout)
        case Kernel.VARLEN:
            return varlen_attention(q, k, v, layout.cu_seqlens, layout.max_length)
        case Kernel.FLEX:
            return flex_packed_attention(q, k, v, layout.block_mask)


def bucketed_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: DocumentLayout, window: int | None = None
) -> Tensor:
    """Packed attention by torch's causal attention over buckets; on every device.

    Args:
        q: float[P, H, E], see `packed_attention`, as are the others.
        k: float[P, K, E].
        v: float[P, K, E].
        layout: documents of the P positions.
        window: see `packed_attention`.

    Returns:
        float[P, H, E].
    """
    sizes = [bucket.num_documents * bucket.length for bucket in layout.buckets]
    plan = layout.padded_to_packed, layout.packed_to_padded
    num_heads = q.shape[1]
    # One gather and one split a tensor: a slice a bucket would cost a full-size gradient each.
    padded = [
        pad_rows(q, *plan).split(sizes),
        _repeat_heads(pad_rows(k, *plan), num_heads).split(sizes),
        _repeat_heads(pad_rows(v, *plan), num_heads).split(sizes),
    ]
    attended = [
        _causal_attention(bucket, window, *parts)
        for bucket, *parts in zip(layout.buckets, *padded, strict=True)
    ]
    return take_rows(torch.cat(attended), layout.packed_to_padded)


class KVCache:
    """Keys and values of the positions that generation has seen.

    A position's slot is its position id. A new position sees the slots up to its own, so rows
    of different length are padded on the right: pads lie in later slots, are not seen, and are
    overwritten by the tokens that are generated. For the same reason a row is reused by writing
    over it from the start.

    Args:
        num_layers: layers of the decoder.
        batch: rows, B.
        max_positions: slots of a row, C; the longest prompt plus what is generated.
        num_kv_heads: K.
        head_dim: E.
        dtype: the model's, as queries come in it.
        device: the model's.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        max_positions: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, batch, max_positions, num_kv_heads, head_dim)
        self.batch = batch
        self.max_positions = max_positions
        self.device = torch.device(device)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def copy_row(self, source: int, target: int, num_positions: int) -> None:
        """Gives a row the first positions of another: a prefix that both have.

        Args:
            source: row that holds the positions.
            target: row that gets them.
            num_positions: positions that are copied, from the row's first.
        """
        for stored in (self._keys, self._values):
            stored[:, target, :num_positions] = stored[:, source, :num_positions]

    def attend_at(self, position_ids: Tensor) -> Attend:
        """Attention of new positions of the first rows, which are written on the way.

        Args:
            position_ids: int64[n, S] for the rows 0 to n - 1, different from each other within
                a row.

        Returns:
            The function that `Decoder.forward` calls in each layer, over P = n * S positions.

        Raises:
            ValueError: a position has no slot, or there are more rows than the cache's.
        """
        num_rows, num_slots = len(position_ids), int(position_ids.max()) + 1
        self._check(num_rows, num_slots)
        slots = torch.arange(num_slots, device=self.device)
        visible = _seen(position_ids, slots, None)
        row_ids = torch.arange(num_rows, device=self.device).unsqueeze(1)

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None
        ) -> Tensor:
            keys, values = self._write(layer, row_ids, position_ids, k, v)
            seen = keys[:num_rows, :num_slots], values[:num_rows, :num_slots]
            rows = q.view(*position_ids.shape, *q.shape[1:])
            mask = visible if window is None else _seen(position_ids, slots, window)
            return _masked_attention(rows, *seen, mask).reshape(q.shape)

        return attend

    def attend_after(
        self, first_row: int, starts: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, Attend]:
        """Attention of rows that go on by different lengths, laid end to end without padding.

        The maps of the layers thus compute real positions only. Where all rows are new, attention
        is over buckets of similar length; else each row's queries are padded to the longest for
        the attention alone.

        Example: starts [0, 4], lengths [3, 2] are the positions 0 1 2 of the first row and
        4 5 of the second, which sees what its slots 0 to 3 hold.

        Args:
            first_row: row of the first of them; the others follow.
            starts: positions that each row holds already.
            lengths: positions that each row gets, one or more.

        Returns:
            position_ids: int64[P], P the sum of the lengths, and the function that
            `Decoder.forward` calls in each layer.

        Raises:
            ValueError: a position has no slot, or a row is not in the cache.
        """
        rows = slice(first_row, first_row + len(starts))
        begins, sizes = np.asarray(starts), np.asarray(lengths)
        num_slots = int((begins + sizes).max())
        self._check(rows.stop, num_slots)
        borders = np.concatenate([[0], np.cumsum(sizes)])
        positions = np.arange(borders[-1]) + np.repeat(begins - borders[:-1], sizes)
        row_ids = self._index(np.repeat(np.arange(rows.start, rows.stop), sizes))
        position_ids = self._index(positions)
        if not begins.any():
            layout = DocumentLayout.from_cu_seqlens(
                torch.from_numpy(borders), int(borders[-1]), self.device
            )

            def attend_within(
                layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None
            ) -> Tensor:
                self._write(layer, row_ids, position_ids, k, v)
                # Not the kernel of training, which may have to be compiled for every length.
                return bucketed_attention(q, k, v, layout, window)

            return position_ids, attend_within

        offsets = np.arange(sizes.max())
        is_real = offsets < sizes[:, None]  # [rows, longest]
        # A pad repeats its row's first new position, and nobody reads what it attends to.
        packed = self._index(np.where(is_real, borders[:-1, None] + offsets, borders[:-1, None]))
        queried = self._index(np.where(is_real, begins[:, None] + offsets, begins[:, None]))
        unpadded = self._index(np.flatnonzero(is_real))
        slots = torch.arange(num_slots, device=self.device)
        visible = _seen(queried, slots, None)

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None
        ) -> Tensor:
            keys, values = self._write(layer, row_ids, position_ids, k, v)
            mask = visible if window is None else _seen(queried, slots, window)
            attended = _masked_attention(
                q[packed], keys[rows, :num_slots], values[rows, :num_slots], mask
            )
            return attended.flatten(0, 1).index_select(0, unpadded)

        return position_ids, attend

    def _write(
        self, layer: int, row_ids: Tensor, position_ids: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keeps keys and values of new positions; gives the layer's, float[B, C, K, E]."""
        keys, values = self._keys[layer], self._values[layer]
        shape = (*position_ids.shape, *k.shape[1:])
        keys[row_ids, position_ids] = k.view(shape).to(keys.dtype)
        values[row_ids, position_ids] = v.view(shape).to(values.dtype)
        return keys, values

    def _index(self, values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device)

    def _check(self, num_rows: int, num_slots: int) -> None:
        if num_rows > self.batch:
            raise ValueError(
                f"Found {num_rows} rows, but the cache was made for {self.batch}. "
                "Make a cache for each batch of prompts."
            )
        if num_slots > self.max_positions:
            raise ValueError(
                f"Found position {num_slots - 1}, but the cache has {self.max_positions} slots. "
                "Make it as long as the longest prompt plus the tokens to generate."
            )


def _check_borders(borders: np.ndarray[Any, np.dtype[np.int64]], num_positions: int) -> None:
    rises = len(borders) > 0 and borders[0] == 0 and bool(np.all(np.diff(borders) >= 0))
    if not rises or borders[-1] != num_positions:
        raise ValueError(
            f"Found cu_seqlens {_abridged(borders)}, expected borders that rise from 0 to "
            f"{num_positions}, the positions of the flattened batch. The collator must shift "
            "each row's borders by the rows before it."
        )


def _abridged(values: np.ndarray[Any, Any]) -> str:
    shown = [str(value) for value in values.tolist()]
    return f"[{', '.join(shown if len(shown) <= 8 else [*shown[:4], '...', *shown[-3:]])}]"


def _plan(borders: np.ndarray[Any, Any]) -> tuple[tuple[Bucket, ...], Any, Any]:
    """Buckets, padded_to_packed and packed_to_padded (see `DocumentLayout`)."""
    lengths = np.diff(borders)
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    buckets: list[Bucket] = []
    to_packed = [np.zeros(0, np.int64)]
    to_padded = np.empty(borders[-1], np.int64)
    num_padded = 0
    for members in _similar_lengths(order, lengths[order].tolist()):
        length = int(lengths[members[0]])
        offsets = np.arange(length)
        starts = borders[members][:, None]
        is_real = offsets < lengths[members][:, None]
        packed = np.where(is_real, starts + offsets, starts).ravel()
        to_padded[packed[is_real.ravel()]] = num_padded + np.flatnonzero(is_real)
        to_packed.append(packed)
        buckets.append(Bucket(len(members), length))
        num_padded += len(packed)
    return tuple(buckets), np.concatenate(to_packed), to_padded


def _similar_lengths(order: np.ndarray[Any, Any], lengths: list[int]) -> list[Any]:
    """Cuts documents, which are sorted from long to short, where a bucket would waste much."""
    cuts, longest = [], lengths[0] if lengths else 0
    for place, length in enumerate(lengths):
        if length < longest * _SHORTEST_SHARE and length < longest - _SLACK:
            cuts.append(place)
            longest = length
    return np.split(order, cuts) if lengths else []


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """[P, K, E] -> [P, H, E]; each head H / K times in a row."""
    positions, num_kv_heads, head_dim = x.shape
    repeats = num_heads // num_kv_heads
    expanded = x.unsqueeze(2).expand(positions, num_kv_heads, repeats, head_dim)
    return expanded.reshape(positions, num_heads, head_dim)


def _causal_attention(bucket: Bucket, window: int | None, *qkv: Tensor) -> Tensor:
    q, k, v = (x.unflatten(0, bucket).transpose(1, 2) for x in qkv)
    if window is None or window >= bucket.length:
        attended = fused_attention(q, k, v, is_causal=True)
    else:
        slots = torch.arange(bucket.length, device=q.device)
        attended = fused_attention(q, k, v, _seen(slots, slots, window))
    return attended.transpose(1, 2).flatten(0, 1)


def _seen(positions: Tensor, slots: Tensor, window: int | None) -> Tensor:
    """bool[..., C]: which slots int64[C] each of the positions int64[...] sees."""
    ages = positions.unsqueeze(-1) - slots
    return ages >= 0 if window is None else (ages >= 0) & (ages < window)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Attention of q[B, S, H, E] over k, v[B, C, K, E], where visible[B, S, C].

    The query heads that share a key-value head are laid out as further queries of it: nothing
    of the cache is copied.
    """
    batch, num_queries, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    groups = num_heads // num_kv_heads
    q = q.view(batch, num_queries, num_kv_heads, groups, head_dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(batch, num_kv_heads, groups * num_queries, head_dim)
    k, v = (x.to(q.dtype).transpose(1, 2) for x in (k, v))
    mask = visible.repeat(1, groups, 1).unsqueeze(1)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    attended = attended.view(batch, num_kv_heads, groups, num_queries, head_dim)
    return attended.permute(0, 3, 1, 2, 4).reshape(batch, num_queries, num_heads, head_dim)
