"""The bar counts positions, names what is running, and stays silent without a terminal."""

from __future__ import annotations

import io
import logging

from rich.console import Console

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
