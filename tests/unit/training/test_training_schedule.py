from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1_pipeline.config.training import ScheduleConfig
from mm1_pipeline.training.schedule import build_scheduler, multiplier


def test_worked_example():
    config = ScheduleConfig(num_steps=10, warmup_steps=4, final_fraction=0.1)
    found = [multiplier(step, config) for step in range(10)]
    cosines = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosines])
    assert found[-1] == pytest.approx(0.1)


def test_the_papers_schedule_peaks_after_2000_steps_and_ends_at_a_tenth():
    config = ScheduleConfig()
    assert multiplier(0, config) == 1 / 2000
    assert multiplier(1999, config) == 1.0
    assert multiplier(101_000 - 1, config) == pytest.approx(0.55, abs=1e-9)  # half of the cosine
    assert multiplier(199_999, config) == pytest.approx(0.1)


def test_decay_matches_torchs_cosine():
    config = ScheduleConfig(num_steps=50, warmup_steps=0, final_fraction=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        optimizer.step()
        reference.step()  # torch's value after k steps is ours in the k-th step
        # torch computes by recursion: worst difference measured 2.2e-16.
        assert multiplier(step, config) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)


@given(num_steps=st.integers(1, 300), data=st.data(), final=st.floats(0, 1))
def test_rises_then_falls_and_stays_between_its_ends(num_steps, data, final):
    warmup = data.draw(st.integers(0, num_steps))
    config = ScheduleConfig(num_steps=num_steps, warmup_steps=warmup, final_fraction=final)
    values = [multiplier(step, config) for step in range(num_steps + 3)]
    warm, decay = values[:warmup], values[warmup:num_steps]
    assert warm == sorted(warm)
    assert all(0 < value <= 1 for value in warm)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(decay))
    assert all(final - 1e-12 <= value <= 1 for value in decay)
    if warmup:
        assert values[warmup - 1] == 1.0
    if warmup < num_steps:
        assert values[num_steps - 1 :] == pytest.approx([final] * 4, abs=1e-12)


def test_scheduler_gives_the_optimizer_the_rate_of_each_step():
    config = ScheduleConfig(num_steps=6, warmup_steps=2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    scheduler = build_scheduler(optimizer, config)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [3e-4 * multiplier(step, config) for step in range(6)]
