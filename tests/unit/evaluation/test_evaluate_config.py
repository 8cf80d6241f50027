"""Parameters of `evaluate` that cannot work are refused when they are read."""

from __future__ import annotations

import pytest
from evaluation_samples import CAPTION_PROMPT, VQA_PROMPT

from mm1_pipeline.config.evaluation import Metric, TaskConfig


def task(**changes) -> TaskConfig:
    return TaskConfig(
        **{"source": "s", "metric": Metric.VQA_ACCURACY, "prompt": VQA_PROMPT, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "Question: {question}"}, r"expected '\{image\}' exactly once"),
        ({"prompt": CAPTION_PROMPT}, r"expected '\{question\}' 1 time"),
        ({"metric": Metric.CIDER}, r"expected '\{question\}' 0 time"),
        ({"shots": ()}, r"shots: found \(\)"),
        ({"shots": (0, -1)}, "shots: found -1, expected at least 0"),
        ({"shots": (4, 4)}, "expected different numbers from 0"),
        ({"stop": ("\n", "")}, "expected no empty string"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ({"max_items": 1}, "max_items: found 1, expected at least 2"),
    ],
)
def test_a_task_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)


def test_the_prompts_of_the_paper_are_accepted():
    assert task(shots=(0, 4, 8)).shots == (0, 4, 8)
    assert task(metric=Metric.CIDER, prompt=CAPTION_PROMPT).question_slots == 0
