"""A terminal gets a bar that goes away, a file a line now and then; both say the same."""

from __future__ import annotations

import io
import itertools
import logging
import re

import pytest
from rich.console import Console

from mm1_pipeline.ground.progress import Progress
from typed_values import shown_on


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def plain() -> Console:
    return Console(file=io.StringIO(), width=120)


def clock(monkeypatch, seconds: float) -> None:
    """Each look at the clock takes so long."""
    now = itertools.count(0, seconds)
    monkeypatch.setattr("mm1_pipeline.ground.progress.time.monotonic", lambda: float(next(now)))


def train(console: Console, rows: int = 3) -> str:
    """As a training shows itself."""
    shown = Progress(
        "pretrain",
        unit="steps",
        total=rows,
        log_seconds=60.0,
        log=None,
        console=console,
        has_thread=False,
    )
    shown.start("2 parameters")
    for step in range(1, rows + 1):
        shown.update(step, note="loss 2.000", seconds=0.5)
    shown.stop()
    shown.say(f"3 steps in {shown.elapsed}")
    return shown_on(console)


def test_a_training_s_file_gets_a_line_at_the_start_and_one_at_the_end():
    assert re.fullmatch(r"pretrain: 2 parameters\npretrain: 3 steps in \d+\.\d s\n", train(plain()))


def test_a_training_s_file_gets_a_line_a_minute(monkeypatch):
    clock(monkeypatch, 15)
    lines = train(plain(), rows=40).splitlines()
    assert 8 < len(lines) < 40
    assert lines[1].startswith("pretrain: ")
    assert "/40 steps, 2.0 steps/s, loss 2.000, ETA 1" in lines[1]


def test_a_training_s_terminal_gets_a_bar_that_goes_away():
    output = train(terminal())
    assert "100 %  3 steps  2.0 steps/s  loss 2.000  ETA 0.0 s" in output
    assert re.search(r"\x1b\[2Kpretrain: 3 steps in \d+\.\d s\n$", output)


def evaluate(console: Console) -> str:
    """As an evaluation shows itself: the bar counts positions, people count items."""
    with Progress("evaluate", unit="items", total=400, console=console) as progress:
        part = progress.part("pretrain vqa 4-shot", 20, 10.0)
        part.advance(15)
        if progress._bar:
            progress._bar.refresh()
        part.advance(5)
        part.finish("vqa_accuracy 31.4")
    return shown_on(console)


def test_a_terminal_shows_part_share_and_rate(caplog):
    with caplog.at_level(logging.INFO):
        text = evaluate(terminal())
    assert "pretrain vqa 4-shot" in text
    assert "38 %  15/20 items, " in text  # 15 items of 10 positions, of 400
    assert "items/s  ETA " in text
    assert "pretrain vqa 4-shot: vqa_accuracy 31.4; 20 items in" in caplog.text
    assert "evaluate: 20 items in" in caplog.text


def test_without_a_terminal_only_the_log_speaks(caplog):
    with caplog.at_level(logging.INFO):
        assert evaluate(plain()) == ""
    assert "20 items in" in caplog.text


def test_numbers_rates_and_the_time_that_is_left(monkeypatch, caplog):
    clock(monkeypatch, 1)
    with (
        caplog.at_level(logging.INFO),
        Progress(
            "plan", unit="records", total=1000, done=100, log_seconds=0, console=plain()
        ) as progress,
    ):
        progress.skip(200)
        progress.advance(70, note="so far")
        progress.advance(0)
    # The clock is read when it starts, when a line is due, and for each line.
    first, second, last = caplog.messages
    assert first == "plan: 37 %, 370/1,000 records, 35.0 records/s, so far, ETA 18.0 s"
    assert second == "plan: 37 %, 370/1,000 records, 14.0 records/s, ETA 45.0 s"
    assert last == "plan: 370/1,000 records in 7.0 s"


def test_work_and_count_may_differ_and_the_end_may_be_unknown(monkeypatch, caplog):
    clock(monkeypatch, 1)
    with (
        caplog.at_level(logging.INFO),
        Progress("read", unit="records", total=1.0, log_seconds=0, console=plain()) as progress,
    ):
        progress.update(0.0, count=10)
        progress.update(0.25, count=12)
    assert caplog.messages == [
        "read: 10 records, 5.0 records/s",
        "read: 25 %, 12 records, 2.4 records/s, ETA 15.0 s",
        "read: 12 records in 7.0 s",
    ]


@pytest.mark.parametrize("console", [terminal, plain])
def test_an_error_s_message_starts_on_a_clean_line(console, caplog):
    shown = console()

    def fail() -> None:
        with Progress("read", unit="records", total=2, console=shown) as progress:
            progress.advance(1)
            raise KeyError

    with caplog.at_level(logging.INFO), pytest.raises(KeyError):
        fail()
    assert not caplog.messages  # it did not end
    text = shown.file.getvalue()
    assert text == "" or text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_the_time_that_is_left_is_that_of_the_slower_rate(monkeypatch, caplog):
    """26 % of the bytes were read ahead in a moment: nothing is left in no time."""
    now = iter([0.0, 0.0, 0.1, 0.1, 0.1, 40.0, 40.0, 40.0, 41.0, 41.0])
    monkeypatch.setattr("mm1_pipeline.ground.progress.time.monotonic", lambda: next(now, 41.0))
    with caplog.at_level(logging.INFO):
        progress = Progress(
            "web", unit="records", total=1.0, log_seconds=0, console=plain(), eta_after=5.0
        )
        progress.start()
        progress.update(0.26, count=2)
        progress.update(0.27, count=90)
    first, second = caplog.messages
    assert first.startswith("web: 26 %, 2 records")
    assert "ETA" not in first
    seconds = re.search(r"ETA (?:(\d+) h )?(\d+) min", second)
    assert seconds is not None, second
    assert int(seconds[2]) + 60 * int(seconds[1] or 0) >= 40, second


def test_what_is_left_takes_a_second_at_least(caplog):
    with caplog.at_level(logging.INFO):
        progress = Progress("read", unit="records", total=100, log_seconds=0, console=plain())
        progress.start()
        progress.update(26)
    assert caplog.messages[-1].endswith("ETA 1.0 s")
