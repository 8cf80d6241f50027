"""Which device is taken, and GPUs that a build of PyTorch was not made for."""

from __future__ import annotations

import pytest
import torch

from mm1_pipeline.models.device import usable_device

CUDA_126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA_130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are GPUs of these compute capabilities, and a build with kernels."""

    def pretend(capabilities, targets, cuda="12.6", hip=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: targets)
        monkeypatch.setattr("torch.version.cuda", cuda)
        monkeypatch.setattr("torch.version.hip", hip)

    return pretend


def test_without_a_gpu_only_cuda_is_refused(gpus):
    gpus([], [])
    assert usable_device("auto") == usable_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device: found cuda, but PyTorch sees no GPU"):
        usable_device("cuda")


@pytest.mark.parametrize(
    ("capability", "targets"),
    [
        ((9, 0), CUDA_126),
        ((8, 9), CUDA_126),
        ((8, 7), ["sm_80"]),
        ((10, 0), CUDA_130),
        ((10, 3), CUDA_130),
        ((12, 1), CUDA_130),
        ((10, 0), ["sm_90", "compute_90"]),
        ((9, 0), ["sm_90a"]),
        ((10, 3), ["sm_100f"]),
        ((10, 0), []),
        ((10, 0), ["sm_next"]),
    ],
)
def test_a_gpu_that_kernels_run_on_is_taken(gpus, capability, targets):
    gpus([capability], targets)
    assert usable_device("auto") == usable_device("cuda") == "cuda"
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("capability", "targets", "cuda", "advice"),
    [
        (
            (10, 0),
            CUDA_126,
            "12.6",
            r"10\.0, .* \(it has sm_50, .*for CUDA 12\.8 or later",
        ),
        ((12, 0), CUDA_126, "12.6", r"for CUDA 12\.8 or later, such as `make setup STACK=newest`"),
        ((10, 3), CUDA_126, "12.6", r"for CUDA 12\.9 or later"),
        ((13, 0), CUDA_130, "13.0", "with kernels for it"),
        ((7, 0), CUDA_130, "13.0", r"for CUDA 12\.6 .* `make setup STACK=pinned`"),
        ((8, 0), ["sm_86"], "12.6", "with kernels for it"),
        ((9, 0), ["sm_100a", "compute_100"], "12.8", "with kernels for it"),
        ((9, 1), ["sm_90a"], "12.8", "with kernels for it"),
    ],
)
def test_a_gpu_without_kernels_is_refused_with_the_build_it_needs(
    gpus, capability, targets, cuda, advice
):
    gpus([capability], targets, cuda)
    for wanted in ("auto", "cuda"):
        with pytest.raises(ValueError, match=advice) as refusal:
            usable_device(wanted)
        assert "device: found GPU 0 of compute capability" in str(refusal.value)
    assert usable_device("cpu") == "cpu"


def test_every_gpu_is_looked_at(gpus):
    gpus([(9, 0), (12, 0)], CUDA_126)
    with pytest.raises(ValueError, match=r"found GPU 1 of compute capability 12\.0"):
        usable_device("auto")


def test_targets_of_rocm_are_not_read_as_cudas(gpus):
    gpus([(9, 4)], ["gfx942"], cuda=None, hip="6.3")
    assert usable_device("auto") == "cuda"
