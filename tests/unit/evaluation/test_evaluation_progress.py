"""The bar counts positions, names what is running, and stays silent without a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import logging

import pytest
from rich.console import Console

from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.evaluate import evaluate
from mm1_pipeline.evaluation.progress import EvaluationProgress


def show(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with EvaluationProgress(400, console) as progress:
        part = progress.part("pretrain vqa 4-shot", 20, 10.0)
        part.advance(15)
        progress._bar.refresh()
        part.advance(5)
        part.finish("vqa_accuracy 31.4")
    return console.file.getvalue()


def test_a_terminal_shows_part_share_and_rate(caplog):
    with caplog.at_level(logging.INFO):
        text = show(terminal=True)
    assert "pretrain vqa 4-shot" in text
    assert "38 %" in text  # 15 items of 10 positions, of 400
    assert "15/20 items" in text
    assert "/s" in text
    assert "ETA" in text
    assert "pretrain vqa 4-shot: vqa_accuracy 31.4; 20 items in" in caplog.text


def test_without_a_terminal_only_the_log_speaks(caplog):
    with caplog.at_level(logging.INFO):
        assert show(terminal=False) == ""
    assert "20 items in" in caplog.text


def test_an_evaluation_moves_the_bar_from_start_to_end(world, tmp_path, monkeypatch, caplog):
    """What images and text tasks announce is what they then do."""
    totals, moved, parts = [], [], []
    begin, part = EvaluationProgress.__init__, EvaluationProgress.part
    monkeypatch.setattr(
        EvaluationProgress,
        "__init__",
        lambda self, total: totals.append(total) or begin(self, total),
    )
    monkeypatch.setattr(
        EvaluationProgress, "advance", lambda self, positions, rate: moved.append(positions)
    )
    monkeypatch.setattr(
        EvaluationProgress, "part", lambda self, *args: parts.append(args) or part(self, *args)
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
        "winogrande": TextTaskConfig(
            task="winogrande", files={"questions": str(questions)}, shots=(0, 2)
        ),
        "triviaqa": TextTaskConfig(
            task="triviaqa", files={"questions": str(trivia)}, max_new_tokens=4
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
