"""What devices can do at most, as their makers state it."""

from __future__ import annotations

from typing import NamedTuple


class DeviceLimits(NamedTuple):
    """Of one device; None where nothing here has asked for it."""

    peak_bfloat16: float
    """Operations a second in matrix products, dense."""
    peak_float32: float | None = None
    """Operations a second without tensor cores."""
    memory_gib: float | None = None

    def peak(self, precision: str) -> float | None:
        """Operations a second in `bfloat16` or `float32`."""
        return self.peak_bfloat16 if precision == "bfloat16" else self.peak_float32


_LIMITS = {
    "GB200": DeviceLimits(2.5e15),
    "B200": DeviceLimits(2.25e15),
    "H100 PCIe": DeviceLimits(756e12),
    "H100 NVL": DeviceLimits(835e12),
    "H200 NVL": DeviceLimits(835e12),
    "H100": DeviceLimits(989e12, 67e12, 80),
    "H200": DeviceLimits(989e12, 67e12, 141),
    "H800": DeviceLimits(989e12),
    "A100": DeviceLimits(312e12, 19.5e12, 80),
    "A800": DeviceLimits(312e12),
    "L40S": DeviceLimits(362e12, 91.6e12, 48),
    "L40": DeviceLimits(181e12),
    "L4": DeviceLimits(121e12),
    "A10G": DeviceLimits(70e12),
    "A10": DeviceLimits(125e12),
    "RTX 4090": DeviceLimits(165.2e12),
}
"""By a part of the name, more special ones first. Source: NVIDIA's data sheets, halved where they
give the figure with sparsity."""


def device_limits(name: str) -> DeviceLimits | None:
    """What a device can do.

    Args:
        name: As PyTorch calls it (`NVIDIA H100 80GB HBM3`), or a part of that (`H100`).

    Returns:
        None for a device that is not in the table.
    """
    return next((limits for part, limits in _LIMITS.items() if part in name), None)
