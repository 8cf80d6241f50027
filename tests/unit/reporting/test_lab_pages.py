"""The lab's pages: every lesson with its verdict, and the law."""

from __future__ import annotations

import math
import re
from html import unescape

import pytest

from mm1_pipeline.reporting.lessons import render_law, render_lessons, verdict_lines


def lesson(**changes):
    return {
        "title": "Resolution raises few-shot",
        "first": "mix",
        "second": "low",
        "expected": "higher",
        "measure": "vqa 4-shot",
        "model": "pretrain",
        "paper": "224 -> 336 px: about +3",
        "delta": 4.25,
        "interval": [1.0, 7.5],
        "stderr": 1.2,
        "seeds": 3,
        "items": 600,
        "margin": None,
        "p_shown": 0.0123,
        "p_contradicted": 1.0,
        "verdict": "shown",
        "reason": "",
        "per_seed": {"17": 3.5, "18": 4.0, "19": 5.25},
        **changes,
    }


LESSONS = {
    "lessons": {
        "L1_resolution": lesson(),
        "L6_connector": lesson(
            title="The <connector> is negligible", second="other", expected="equal", margin=3.0,
            verdict="not shown", reason="the interval holds both", delta=-0.5, interval=[-4, 3],
        ),
        "L8_text": lesson(
            measure="held-out loss of text, negative", verdict="contradicted", delta=-0.125,
            interval=[-0.2, -0.05], paper="",
        ),
    },
    "arms": {
        "mix": {"overrides": {}, "positions": 10_240_000, "scores": {}},
        "low": {"overrides": {"model.vision.image_size": 32}, "positions": 10_240_000,
                "scores": {}},
        "other": {"overrides": {"a.b": None}, "positions": 10_240_000, "scores": {}},
    },
    "seeds": [17, 18, 19],
}  # fmt: skip
COSTS = {
    "arms": {
        name: {seed: {"seconds": 600.0, "device": "cpu"} for seed in ("17", "18", "19")}
        for name in ("mix", "low", "other")
    }
}


def text_of(page: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))


class TestLessons:
    def test_every_lesson_has_a_section_with_its_verdict_and_the_papers_figure(self):
        page = render_lessons(LESSONS, COSTS)
        text = text_of(page)
        for anchor in ("lessons", "l1-resolution", "l6-connector", "l8-text", "arms"):
            assert f'id="{anchor}"' in page, anchor
        for wanted in (
            "224 -> 336 px: about +3",
            "+4.2 [+1.0, +7.5]",
            "no difference, within 3.0 points",
            "the interval holds both",
            "model.vision.image_size: 32",
            "a.b: left out",
            "10.2M",
            "10 min",
            "The <connector> is negligible",
            "seed 18",
        ):
            assert wanted in text, wanted

    def test_lessons_stand_by_number_whatever_the_order_of_their_files(self):
        names = ["L13_half", "mine", "L7_captions", "L1_resolution", "L7_few_shot"]
        page = render_lessons({**LESSONS, "lessons": {name: lesson() for name in names}}, COSTS)
        found = re.findall(r'<section[^>]* id="([^"]+)"', page)
        assert found == [
            "lessons", "l1-resolution", "l7-captions", "l7-few-shot", "l13-half", "mine", "arms",
        ]  # fmt: skip

    def test_every_verdict_is_a_line(self):
        assert verdict_lines(LESSONS) == [
            "L1_resolution: shown, +4.2 [+1.0, +7.5] points (seeds: 3)",
            "L6_connector: not shown, −0.5 [−4.0, +3.0] points (seeds: 3)",
            "L8_text: contradicted, −0.125 [−0.200, −0.050] nats a token (seeds: 3)",
        ]

    def test_differences_of_cider_do_not_squeeze_those_of_accuracies(self):
        cider = lesson(delta=576.6, interval=[574.9, 578.3], measure="captions 0-shot")
        page = render_lessons(
            {**LESSONS, "lessons": {"L1_resolution": lesson(), "L7_zero_shot": cider}}, COSTS
        )
        usual, large = re.findall(r"<figcaption>Differences .*?</figure>", page, re.DOTALL)
        assert "L1_resolution" in usual
        assert "L7_zero_shot" not in usual
        assert "beyond 100 points" in large
        assert "L7_zero_shot" in large

    def test_losses_have_their_own_scale(self):
        text = text_of(render_lessons(LESSONS, COSTS))
        assert "−0.125 [−0.200, −0.050]" in text
        assert "mix less low, nats a token" in text

    def test_equal_results_give_equal_bytes_and_nothing_is_loaded(self):
        page = render_lessons(LESSONS, COSTS)
        assert page == render_lessons(LESSONS, COSTS)
        assert "<script" not in page
        assert not re.search(r'(?:src|href)="https?:', page)


@pytest.mark.parametrize("is_inside", [True, False])
def test_the_law_stands_beside_the_papers(is_inside):
    points = [
        {"non_embedding_parameters": size, "best_learning_rate": rate,
         "interval": [rate / 1.5, rate * 1.5], "is_inside": is_inside, "num_fitted": 3,
         "parabola": [0.1, -0.2 * math.log(rate), 2 + 0.1 * math.log(rate) ** 2],
         "runs": [{"learning_rate": rate * factor, "seed": 0,
                   "value": None if factor > 3 else 2 + 0.1 * math.log(factor) ** 2}
                  for factor in (0.5, 1, 2, 4)]}
        for size, rate in ((100_000, 6e-3), (400_000, 3.2e-3), (1_600_000, 1.7e-3))
    ]  # fmt: skip
    law = {
        "points": points, "slope": -0.455, "slope_interval": [-0.6, -0.3], "intercept": 0.12,
        "intercept_interval": [-0.5, 0.7], "r_squared": 0.98, "higher_is_better": False,
        "predictions": [{"non_embedding_parameters": 2_700_000_000, "learning_rate": 5.7e-5,
                         "interval": [1e-5, 2e-4], "paper": 6.1e-5}],
        "paper": {"slope": -0.4214, "intercept": -0.5535},
    }  # fmt: skip
    page = render_law(law)
    text = text_of(page)
    for wanted in ("-0.455", "[-0.600, -0.300]", "-0.4214", "3.20e-03", "2.70B", "5.7e-05"):
        assert wanted in text, wanted
    assert "a bound only" in text
    assert ("yes" in text) == is_inside
    assert page.count("<svg") == 2
