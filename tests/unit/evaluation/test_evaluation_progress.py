"""What an evaluation announces to its bar is what it then does."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.evaluate import evaluate
from mm1_pipeline.ground.progress import Progress
from typed_values import entry


def test_an_evaluation_moves_the_bar_from_start_to_end(world, tmp_path, monkeypatch, caplog):
    """What images and text tasks announce is what they then do."""
    totals, moved, parts = [], [], []
    begin, part = Progress.__init__, Progress.part
    monkeypatch.setattr(
        Progress,
        "__init__",
        lambda self, name, **given: totals.append(given["total"]) or begin(self, name, **given),
    )
    monkeypatch.setattr(Progress, "advance", lambda self, positions, **_: moved.append(positions))
    monkeypatch.setattr(
        Progress, "part", lambda self, *args: parts.append(args) or part(self, *args)
    )
    rows = [
        {"qID": str(n), "sentence": f"The red shape {n} is _ here.", "option1": "red"}
        | {"option2": "blue", "answer": "12"[n % 2]}
        for n in range(6)
    ]
    questions = tmp_path / "dev.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"qID": "torn"}]))
    trivia = tmp_path / "trivia.json"
    asked = [
        {"QuestionId": str(n), "Question": f"what is {n}", "Answer": {"Aliases": ["red"]}}
        for n in range(4)
    ]
    trivia.write_text(json.dumps({"Data": asked}))
    text_tasks = {
        "winogrande": entry(
            TextTaskConfig, task="winogrande", files={"questions": str(questions)}, shots=(0, 2)
        ),
        "triviaqa": entry(
            TextTaskConfig, task="triviaqa", files={"questions": str(trivia)}, max_new_tokens=4
        ),
    }
    config = dataclasses.replace(world.config, text_tasks=text_tasks)
    with caplog.at_level(logging.INFO):
        evaluate(config, {"pretrain": world.model}, **world.inputs(), output_dir=tmp_path / "out")
    (total,) = totals
    assert sum(moved) == pytest.approx(total, abs=1)
    text = {name: (items, positions) for name, items, positions in parts if "blind" not in name}
    assert text["pretrain winogrande 0-shot"][0] == 6  # the torn one is not asked
    assert text["pretrain winogrande 2-shot"][1] > 2 * text["pretrain winogrande 0-shot"][1]
    # Images are asked twice, text once.
    images = sum(n * each for name, n, each in parts if "captions" in name or "questions" in name)
    texts = sum(n * each for name, n, each in parts if "winogrande" in name or "trivia" in name)
    assert texts > 0
    assert images + texts == pytest.approx(total, abs=1)
    assert "pretrain winogrande 0-shot: acc" in caplog.text
    assert "; 6 items in" in caplog.text
