"""Numbers and foreign text as a reader sees them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

MISSING = "–"
"""Shown where there is no number; a NaN is shown as such, never as missing."""

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_MINUS = "\N{MINUS SIGN}"
_HARMLESS = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def count(value: float | None) -> str:
    """A whole number with thousands separated: 12,345."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    return f"{round(value):,}".replace("-", _MINUS)


def compact(value: float | None) -> str:
    """A large number to three digits: 1.23M, 45.6k; below 1,000 as it is."""
    if value is None:
        return MISSING
    for size, unit in _UNITS:
        # 999,950 rounds to "1000k" in its own unit, so the next unit begins a little early.
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def decimal(value: float | None, digits: int = 1) -> str:
    """A number with a fixed number of decimals, so that columns align."""
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def signed(value: float | None, digits: int = 1) -> str:
    """A difference, with its sign even when positive."""
    if value is None:
        return MISSING
    return f"{value:+,.{digits}f}".replace("-", _MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return MISSING if share is None else f"{decimal(100 * share, digits)} %"


def scientific(value: float | None) -> str:
    """A learning rate: 6.0e-5."""
    if value is None:
        return MISSING
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def duration(seconds: float | None) -> str:
    """A time as its two largest units: 3 min 20 s."""
    if seconds is None:
        return MISSING
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{count(hours)} h {minutes} min"


def speed(per_second: float, unit: str) -> str:
    """How fast things are counted: 1,234 records/s, 2.5 steps/s; below one, 3.1 s/step.

    Args:
        per_second: items done per second, from 0.
        unit: what they are called, in the plural.
    """
    if 0 < per_second < 1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('s')}"
    return f"{per_second:,.{0 if per_second >= 100 else 1}f} {unit}/s"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """The ends of an interval."""
    if low is None or high is None:
        return MISSING
    return f"{decimal(low, digits)} to {decimal(high, digits)}"


def nearest(possible: Iterable[int], wanted: int) -> str:
    """The two numbers that are nearest to one that cannot be: `5 or 10`."""
    found = sorted(possible, key=lambda number: abs(number - wanted))[:2]
    return " or ".join(map(str, sorted(found)))


def visible(text: str) -> str:
    """Replaces characters that act instead of showing: controls, direction overrides, surrogates.

    A model may emit any byte sequence. Escaping stops markup; this stops a right-to-left
    override from reordering the page and a lone surrogate from making it impossible to encode.
    """
    return "".join(
        character
        if character in _HARMLESS or unicodedata.category(character) not in _HIDDEN_CATEGORIES
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def shorten(text: str, limit: int = 280) -> str:
    """Cuts a long text and says how much is missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()} … ({count(len(text) - limit)} more characters)"


def _three_digits(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    digits = 0 if abs(value) >= 99.95 or float(value).is_integer() else 1
    if abs(value) < 9.995 and not float(value).is_integer():
        digits = 2
    return f"{value:.{digits}f}".replace("-", _MINUS)
