"""What a training is planned for: devices, their price, and what the data is like."""

from __future__ import annotations

from enum import StrEnum

from mm1_pipeline.config._base import parameters


class Device(StrEnum):
    """Devices whose peak is known."""

    H100 = "h100"
    """H100 SXM."""
    H200 = "h200"
    A100 = "a100"
    """A100 SXM 80 GB."""
    L40S = "l40s"


@parameters
class ClusterConfig:
    """What a plan assumes of machines and data."""

    device: Device = Device.H100
    num_devices: int = 8
    model_flops_utilisation: float = 0.4
    """Share of the peak that trainings reach; measure it: the training log states it."""
    price_per_device_hour: float | None = None
    """In any currency; None leaves the cost out."""
    images_per_sequence: float | None = None
    """Mean over the mixture, which the shards' report tells; None lets image tokens take half of
    the positions, as far as packing allows so many images."""
    labelled_share: float = 0.5
    """Share of the positions that predict a token; image tokens never do."""
    bytes_per_image: int = 50_000
    """Mean size of a stored image."""

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ValueError(f"num_devices: found {self.num_devices}, expected at least 1.")
        for name in ("model_flops_utilisation", "labelled_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 to 1.")
        if self.images_per_sequence is not None and self.images_per_sequence < 0:
            raise ValueError(f"images_per_sequence: found {self.images_per_sequence}.")
