"""Scores of single texts: exact match, ANLS, relaxed accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence

MIN_SIMILARITY = 0.5
"""Similarity below which ANLS gives nothing. Source: the ANLS metric of ST-VQA and DocVQA."""
RELAXED_TOLERANCE = 0.05
"""Relative error that relaxed accuracy forgives. Source: ChartQA."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references but for case, outer spaces and final full stops.

    Source: GQA's evaluation, which compares as it stands, after LLaVA's conversion for it;
    deviation: references are converted too.
    """
    return float(_plain(answer) in {_plain(reference) for reference in references})


def anls(answer: str, references: Sequence[str]) -> float:
    """Similarity to the nearest reference: 1 - edit distance / longer length, or 0 below a half.

    Case and runs of spaces do not count in the distance; the length is that of the text as it
    stands, in capitals (of which the German sharp s has two). Source: the evaluation of DocVQA and
    InfographicVQA.
    """
    given = " ".join(answer.lower().split())
    distances = [
        _normalized_distance(
            given, " ".join(text.lower().split()), max(len(answer.upper()), len(text.upper()))
        )
        for text in references
    ]
    similarity = 1 - min(distances, default=1.0)
    return similarity if similarity >= MIN_SIMILARITY else 0.0


def relaxed_accuracy(answer: str, references: Sequence[str]) -> float:
    """1 if a number is within 5 % of a reference number, or a text is equal to one but for case.

    A number is what Python reads as one, or that with a percent sign: `1,931`, `$5` and `5.2.`
    are texts, and so is every answer to the reference 0. Source: Pix2Struct's relaxed
    correctness, which ChartQA's results are given by.
    """
    return float(any(_relaxed_equal(answer, reference) for reference in references))


def numbers_in(text: str) -> list[float]:
    """Numbers of a text in order; commas between thousands are no decimals."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def parse_number(text: str) -> float | None:
    """The number a text is, `50%` as 0.5; None if it is none."""
    cleaned = text.strip().rstrip(".").replace(",", "")
    is_percentage = cleaned.endswith("%")
    cleaned = cleaned.rstrip("%").strip()
    if not re.fullmatch(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", cleaned):
        return None
    return float(cleaned) / 100 if is_percentage else float(cleaned)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: insertions, deletions and replacements of one character."""
    row = list(range(len(second) + 1))
    for number, character in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            cost = diagonal + (character != other)
            diagonal = row[place]
            row[place] = min(cost, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def _normalized_distance(first: str, second: str, longer: int) -> float:
    return edit_distance(first, second) / longer if longer else 0.0


def _relaxed_equal(answer: str, reference: str) -> bool:
    given, right = _float_of(answer), _float_of(reference)
    if given is None or not right:
        return answer.lower() == reference.lower()
    return abs(given - right) / abs(right) <= RELAXED_TOLERANCE


def _float_of(text: str) -> float | None:
    """The number that Python reads; `50%` is 0.5."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
