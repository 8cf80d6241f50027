"""VQA accuracy against values that the official scorer gave to 5,000 random answers.

How vqa_accuracy.txt was made: the class VQAEval of GT-Vision-Lab/VQA (PythonEvaluationTools,
vqaEval.py, its prints turned into Python 3) scored the rows of `random_answers(5000)`, with
question and answer type constant and the mean of each question taken before it is rounded. Each
character is one answer's accuracy: 0, 3 (0.3), 6 (0.6), 9 (0.9), X (1.0).
"""

from __future__ import annotations

from pathlib import Path

from vqa_answers import random_answers

from mm1_pipeline.evaluation.metrics import vqa_accuracy

GOLDEN = Path(__file__).with_name("vqa_accuracy.txt")
VALUES = {"0": 0.0, "3": 0.3, "6": 0.6, "9": 0.9, "X": 1.0}


def test_vqa_accuracy_is_the_official_one_on_5000_answers():
    expected = [VALUES[code] for code in GOLDEN.read_text().replace("\n", "")]
    rows = random_answers(5000)
    assert len(expected) == len(rows) == 5000
    found = [vqa_accuracy(answer, humans) for answer, humans in rows]
    # Worst difference measured: 0.0.
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    assert worst < 1e-12
    assert {code: expected.count(value) for code, value in VALUES.items()}["6"] > 400
