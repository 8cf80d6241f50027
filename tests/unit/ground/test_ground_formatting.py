from __future__ import annotations

import math

import pytest

from mm1_pipeline.ground.formatting import (
    MISSING,
    compact,
    count,
    decimal,
    duration,
    interval,
    percent,
    scientific,
    shorten,
    signed,
    speed,
    visible,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.25, "0.25"),
        (12.34, "12.3"),
        (999, "999"),
        (999.96, "1.00k"),
        (1_000, "1k"),
        (1_234, "1.23k"),
        (45_600, "45.6k"),
        (999_499, "999k"),
        (999_600, "1.00M"),
        (3_004_000, "3.00M"),
        (419e9, "419B"),
        (-1_500, "−1.50k"),
        (None, MISSING),
    ],
)
def test_compact_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert compact(value) == text


def test_missing_is_not_nan() -> None:
    assert count(None) == decimal(None) == percent(None) == MISSING
    assert decimal(math.nan) == "nan"
    assert count(math.inf) == "inf"


def test_numbers_are_written_for_columns() -> None:
    assert count(1_234_567) == "1,234,567"
    assert decimal(-3.14159, 2) == "−3.14"
    assert signed(2.04) == "+2.0"
    assert signed(-2.06) == "−2.1"
    assert percent(0.4567) == "45.7 %"
    assert interval(-1.0, 2.0) == "−1.0 to 2.0"
    assert scientific(2.6e-3) == "2.6e-3"
    assert scientific(6e-5) == "6.0e-5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3_599.7, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_acting_characters_become_visible() -> None:
    hostile = "a\x00b\u202ec\ud800d\x1b[31m"
    assert visible(hostile) == "a\ufffdb\ufffdc\ufffdd\ufffd[31m"
    visible(hostile).encode("utf-8")


def test_ordinary_text_is_kept() -> None:
    text = "naïve 日本語 👩\u200d🔬\n\tعربى"
    assert visible(text) == text


def test_long_text_says_what_is_missing() -> None:
    assert shorten("x" * 280) == "x" * 280
    assert shorten("x" * 1_290, 10) == "x" * 10 + " … (1,280 more characters)"


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (0, "0.0 steps/s"),
        (2, "2.0 steps/s"),
        (99.94, "99.9 steps/s"),
        (1234.5, "1,234 steps/s"),
        (0.25, "4.0 s/step"),
    ],
)
def test_speeds(per_second: float, text: str) -> None:
    assert speed(per_second, "steps") == text
