"""Mixed resolution: the budget by hand, and prompts whose images differ in positions."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_samples import sample_questions

from mm1_pipeline.config.evaluation import Metric, MixedResolution
from mm1_pipeline.evaluation.prompts import build_prompts
from mm1_pipeline.evaluation.resolution import check_budget, image_budget, tiles_per_example


def test_the_papers_arithmetic():
    # 9 x 720 = 6,480; 5 x 144 + 4 x 720 = 3,600.
    assert image_budget(8, MixedResolution(num_high_shots=8), 144) == (0, 9, 6480)
    assert image_budget(8, MixedResolution(), 144) == (5, 4, 3600)
    assert image_budget(2, MixedResolution(), 144) == (0, 3, 2160)
    assert image_budget(0, MixedResolution(), 144) == (0, 1, 720)


def test_what_does_not_fit_is_refused_and_what_fits_is_named():
    check_budget("t", 8, MixedResolution(), 144, num_rest=496)
    with pytest.raises(
        ValueError,
        match=r"tasks.t.resolution: found 8 shots whose images take 9 x 720 = 6,480 positions.*"
        r"allowed are 4,096 together. With num_high_shots: 3, the images take "
        r"5 x 144 \+ 4 x 720 = 3,600, which fits.",
    ):
        check_budget("t", 8, MixedResolution(num_high_shots=8), 144, num_rest=200)
    with pytest.raises(ValueError, match=r"With num_high_shots: 2"):
        check_budget("t", 8, MixedResolution(), 144, num_rest=497)
    with pytest.raises(ValueError, match=r"num_high_shots: 0, at most 22 shots fit"):
        check_budget("t", 40, MixedResolution(), 144, num_rest=100)
    with pytest.raises(ValueError, match="Not even the query alone fits"):
        check_budget("t", 0, MixedResolution(), 144, num_rest=4000)


@pytest.mark.parametrize("num_shots", range(12))
@pytest.mark.parametrize("num_rest", [0, 300, 900, 1500, 2600])
def test_what_is_named_fits_and_one_more_does_not(num_shots, num_rest):
    resolution = MixedResolution(num_high_shots=12)
    try:
        check_budget("t", num_shots, resolution, 144, num_rest)
    except ValueError as error:
        if "With num_high_shots" not in str(error):
            return
        named = int(str(error).split("With num_high_shots: ")[1].split(",")[0])
        check_budget("t", num_shots, MixedResolution(num_high_shots=named), 144, num_rest)
        with pytest.raises(ValueError, match="found"):
            check_budget("t", num_shots, MixedResolution(num_high_shots=named + 1), 144, num_rest)


def test_last_shots_and_query_stay_high():
    assert tiles_per_example(3, MixedResolution(num_high_shots=1)) == (1, 1, 5, 5)
    assert tiles_per_example(1, MixedResolution(num_high_shots=3)) == (5, 5)
    assert tiles_per_example(3, None) == (1, 1, 1, 1)


def test_prompts_have_the_positions_of_each_image(make_task, tokenizer):
    mixed = MixedResolution(high_tiles=3, num_high_shots=1)
    task = make_task(sample_questions(), Metric.VQA_ACCURACY, resolution=mixed)
    plain = make_task(sample_questions(), Metric.VQA_ACCURACY)
    pairs = zip(
        build_prompts(task, 3, 0, tokenizer, 2),
        build_prompts(plain, 3, 0, tokenizer, 2),
        strict=True,
    )
    for prompt, same in pairs:
        assert prompt.tiles == (1, 1, 3, 3)
        runs = np.flatnonzero(np.diff(prompt.input_ids == tokenizer.image_id))
        assert list(np.diff(runs)[::2]) == [2, 2, 6, 6]
        # The same texts and images in the same order.
        assert prompt.content == same.content
        assert prompt.images == same.images
        assert len(prompt) - len(same) == 2 * 4


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="high_tiles: found 1"):
        MixedResolution(high_tiles=1)
    with pytest.raises(ValueError, match="num_high_shots: found -1"):
        MixedResolution(num_high_shots=-1)
