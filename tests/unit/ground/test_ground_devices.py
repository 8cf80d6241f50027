"""One table for what is planned and for the MFU that is measured."""

from __future__ import annotations

import pytest
import torch

from mm1_pipeline.config.plan import Device
from mm1_pipeline.ground.devices import device_limits
from mm1_pipeline.training.device import peak_flops
from typed_values import not_none


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_device_is_known_by_the_name_that_torch_gives(monkeypatch, name, peak):
    limits = device_limits(name)
    assert (limits and limits.peak("bfloat16")) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert peak_flops("cuda", "bfloat16") == peak
    assert peak_flops("cuda", "float32") is None
    assert peak_flops("cpu", "bfloat16") is None


@pytest.mark.parametrize("device", Device)
def test_of_a_device_that_can_be_planned_for_everything_is_known(device):
    limits = device_limits(device.value.upper())
    assert limits is not None
    assert None not in limits
    assert not_none(limits.peak("bfloat16")) > not_none(limits.peak("float32")) > 1e13
