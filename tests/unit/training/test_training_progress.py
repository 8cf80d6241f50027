from __future__ import annotations

import io

import pytest
from rich.console import Console

from mm1_pipeline.training.progress import TrainingDisplay, compact, duration


def run(*, terminal: bool, rows: int = 3) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    display = TrainingDisplay("pretrain", num_steps=rows, console=console)
    display.start("2 parameters")
    for step in range(1, rows + 1):
        display.update({"step": step, "loss": 2.0, "timing": {"seconds": 0.5}})
    display.finish(f"3 steps in {display.elapsed}")
    return stream.getvalue()


def test_a_log_file_gets_a_line_at_the_start_and_one_at_the_end():
    assert run(terminal=False) == "pretrain: 2 parameters\npretrain: 3 steps in 0 s\n"


def test_a_log_file_gets_a_line_a_minute(monkeypatch):
    now = iter(range(0, 100_000, 40))
    monkeypatch.setattr("mm1_pipeline.training.progress.time.monotonic", lambda: float(next(now)))
    lines = run(terminal=False, rows=40).splitlines()
    assert 8 < len(lines) < 40
    assert lines[1].startswith("pretrain: step ")
    assert "2.0 steps/s  loss 2.000  ETA" in lines[1]


def test_a_terminal_gets_a_bar_that_goes_away():
    output = run(terminal=True)
    assert "3/3" in output
    assert "2.0 steps/s  loss 2.000  ETA 0 s" in output
    assert output.endswith("pretrain: 3 steps in 0 s\n")


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12"), (999_960, "1M"), (85_100_000, "85.1M"), (1_208_000_000, "1.21B"), (4096, "4.1k")],
)
def test_compact(number, text):
    assert compact(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00 min"), (185, "3:05 min"), (7509, "2:05:09 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
