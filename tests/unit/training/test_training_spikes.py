from __future__ import annotations

import json
import math
import random

import pytest

from mm1_pipeline.config.training import DivergenceConfig, LossSpikeConfig
from mm1_pipeline.training.spikes import DivergenceDetector, SpikeDetector


def detector(**options) -> SpikeDetector:
    return SpikeDetector(LossSpikeConfig(**{"window_steps": 8, "threshold": 5.0, **options}))


def fed(spikes: SpikeDetector, losses) -> list[bool]:
    return [spikes.judge(loss).is_spike for loss in losses]


def noise(count: int) -> list[float]:
    rng = random.Random(0)
    return [3.0 + rng.gauss(0, 0.1) for _ in range(count)]


def test_the_score_is_robust_standard_deviations_above_the_median():
    spikes = detector()
    assert fed(spikes, [1, 2, 3, 4, 5, 6, 7, 8]) == [False] * 8
    assert spikes.last.score is None, "too few are known"
    # Median 4.5; distances .5 .5 1.5 1.5 2.5 2.5 3.5 3.5 have the median 2.
    assert spikes.judge(4.5 + 5 * 1.4826 * 2).score == pytest.approx(5.0)


def test_noise_and_a_falling_loss_are_no_spikes():
    assert not any(fed(detector(threshold=10.0, window_steps=50), noise(400)))
    falling = [6 * math.exp(-step / 60) + value / 10 for step, value in enumerate(noise(400))]
    assert not any(fed(detector(threshold=10.0, window_steps=50), falling))


def test_one_wild_loss_in_the_window_hides_no_other():
    """A mean and a standard deviation would take the second for normal."""
    spikes = detector(action="warn")
    fed(spikes, noise(8))
    assert fed(spikes, [9.0, 3.0, 9.0]) == [True, False, True]
    assert spikes.row() == {"score": spikes.last.score, "found": 2, "skipped": 0}


def test_equal_losses_make_no_hair_trigger():
    spikes = detector()
    fed(spikes, [2.0] * 8)
    assert fed(spikes, [2.001, 2.5]) == [False, True]


def test_skipped_losses_do_not_become_normal_and_accepted_ones_do():
    skipping, warning = detector(action="skip"), detector(action="warn")
    for spikes in (skipping, warning):
        fed(spikes, noise(8))
    level = [5.0 + value / 100 for value in noise(30)]
    assert all(fed(skipping, level))
    assert (skipping.num_found, skipping.num_skipped) == (30, 30)
    found = fed(warning, level)
    assert found[0]
    assert not any(found[8:])


def test_a_resumed_detector_judges_as_the_uninterrupted_one():
    losses = [*noise(20), 9.0, *noise(10), 9.0]
    whole = detector()
    expected = fed(whole, losses)
    first, second = detector(), detector()
    found = fed(first, losses[:13])
    second.load_state_dict(first.state_dict())
    assert found + fed(second, losses[13:]) == expected
    assert second.row() == whole.row()


def diverged(losses, **options) -> int | None:
    """The step at which a training with these losses is stopped."""
    found = DivergenceDetector(DivergenceConfig(**options))
    steps = (step for step, loss in enumerate(losses, 1) if found.has_diverged(step, loss))
    return next(steps, None)


def test_a_divergence_is_so_many_steps_in_a_row_above_the_minimum():
    high = [3.0, 2.0, *[6.1] * 9]
    assert diverged(high, factor=3.0, patience_steps=5) == 7
    assert diverged(high, factor=3.1, patience_steps=5) is None
    assert diverged(high, factor=3.0, patience_steps=10) is None
    broken = [2.0, *[7.0] * 4, 5.9, *[7.0] * 4]
    assert diverged(broken, factor=3.0, patience_steps=5) is None, "one step below begins anew"
    assert diverged([8.3, *[40.0] * 30]) == 21, "the defaults"


def test_a_minimum_near_zero_is_no_hair_trigger():
    answers = [2.0, 0.01, *[0.3] * 50]
    assert diverged(answers) is None
    assert diverged(answers, floor=0.0) == 22


def test_a_divergence_goes_on_from_its_state_and_from_none():
    first = DivergenceDetector(DivergenceConfig(patience_steps=3))
    assert [first.has_diverged(n, loss) for n, loss in enumerate([2.0, 9, 9], 1)] == [False] * 3
    second, third = (DivergenceDetector(first.config) for _ in range(2))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    third.load_state_dict({})  # An earlier version's.
    assert second.has_diverged(4, 9.0)
    assert not third.has_diverged(4, 9.0)
    untouched = DivergenceDetector(first.config).state_dict()
    assert json.dumps(untouched, allow_nan=False), "an infinite minimum is no JSON"
