"""Torch's fused attention, in the type that a device computes fastest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """Scaled dot-product attention; in float32 under a CPU's autocast.

    A CPU's bfloat16 products are several times faster than its float32 ones, but not in torch's
    attention, whose backward pass takes longer for heads as narrow as a small model's.

    Args:
        q: float[..., S, E].
        k: float[..., C, E].
        v: float[..., C, E].
        mask: bool, broadcast to [..., S, C]; True is seen. None sees everything.
        is_causal: Whether a query sees keys up to its own place only.

    Returns:
        float[..., S, E].
    """
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    with torch.autocast("cpu", enabled=False):
        parts = (x.float() for x in (q, k, v))
        return F.scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=is_causal)
