"""What a training is planned for: devices, their price, and what the data is like."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from mm1_pipeline.config._base import Count, Weight, bounds, parameters


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
    num_devices: Count = 8
    """Where it is not given, the most up to 8 that divide every batch."""
    model_flops_utilisation: Annotated[float, bounds(gt=0, le=1)] = 0.4
    """Share of the peak that trainings reach; measure it: the training log states it."""
    price_per_device_hour: Weight | None = None
    """In any currency; None leaves the cost out."""
    images_per_sequence: Weight | None = None
    """Mean over the mixture, which the shards' report tells; None lets image tokens take half of
    the positions, as far as packing allows so many images."""
    labelled_share: Annotated[float, bounds(gt=0, le=1)] = 0.5
    """Share of the positions that predict a token; image tokens never do."""
    bytes_per_image: Count = 50_000
    """Mean size of a stored image."""
    disk_bytes_per_second: Annotated[float, bounds(gt=0, le=1e15)] = 1e9
    """What the first rank's host writes; checkpoints are gathered and written there."""
