"""MMMU's questions without options: which words and numbers of an answer count."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What stands before an answer in a line; the last line's may also follow an equals sign."""
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
)
"""With thousands, with an exponent, and plain."""
_DIGITS = 2


def open_answer_match(answer: str, references: Sequence[str]) -> float:
    """1 if what an answer comes to is a reference: its number to two digits, or holds its text.

    Worked example: `$1000 * 12 / 500 = $24` comes to `$24` and 24, so it is no answer of 1000.

    Source: MMMU's own rules, of which this gives the same values, quirks included: only lines
    count as sentences, and a reference's letters may stand inside of a longer word.

    Args:
        answer: All that the model wrote, with its lines.
        references: The answers that are right.
    """
    right = [form for reference in references for form in _forms(reference)]
    texts = [form for form in right if isinstance(form, str)]
    ends = _ends(answer)
    numbers = [found for end in ends for pattern in _NUMBERS for found in pattern.findall(end)]
    for given in (form for text in (*ends, *numbers) for form in _forms(text)):
        if isinstance(given, str):
            is_right = any(text in given for text in texts)
        else:
            is_right = given in right
        if is_right:
            return 1.0
    return 0.0


def _ends(answer: str) -> list[str]:
    """Of each line the shortest text behind a cue; the whole answer where no line has one."""
    text = answer.strip().strip(".").lower()
    lines = text.split("\n")
    ends = []
    for line in lines:
        cues = (*_CUES, "=") if line is lines[-1] else _CUES
        shortest = ""
        for tail in (line.rpartition(cue)[2].strip() for cue in cues if cue in line):
            # An empty one is the shortest, and the next one replaces it.
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            ends.append(shortest)
    return ends or [text]


def _forms(text: str) -> list[float | str]:
    """A number to two digits; a text in lower case, and a single letter only as a word's end."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), _DIGITS)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
