"""MathVista: extracting the answer from a solution, and comparing it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mm1_pipeline.evaluation.answers.markup import marked_answers, plain_text
from mm1_pipeline.evaluation.answers.option_parsing import parse_option
from mm1_pipeline.evaluation.answers.postprocess import DIGITS
from mm1_pipeline.evaluation.formats.base import letter
from mm1_pipeline.evaluation.scoring.metrics import edit_distance
from mm1_pipeline.evaluation.tasks import TaskItem

RULES = "rules-2"
"""Names extraction without a judge in every row: the official one asks a language model, so a
score by rules is not comparable with published ones."""

EXTRACTION_PROMPT = """\
Below are a problem and a solution. Write the final answer that the solution gives, and nothing
else: a number without unit, the text of the chosen option, or a list. Write "none" if it gives
no answer.

Problem: {question}

Solution: {answer}
"""
"""What a judge is asked; our own wording."""

_QUICK = re.compile(r'The answer is "(.*)"\.')
_LIST = re.compile(r"\[[^\[\]]*\]")
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])[-+]?\.\d+"
)
_SETTLES = re.compile(
    r"\banswer\b[^.\n]{0,60}?:|\b(?:therefore|thus|hence|so|is|are|was|were|has|have|be|equals?)\b"
    r"|=|≈",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"\(([a-zA-Z])\)")
_NUMERIC = ("integer", "float")


def extract_by_rules(text: str, item: TaskItem) -> str | None:
    """The answer inside a solution, by rules; None if it gives none.

    What the official script takes without asking its language model comes first: an option's
    text, a number alone, `The answer is "..."`. Then the option it names; the number of what it
    boxes or, of the last sentence with an answer, the first after `is`, `=` or the like; a list.
    """
    text = text.strip()
    kind = item.facts.get("answer_type")
    if text in item.options or (kind in _NUMERIC and _float(text) is not None):
        return text
    if quick := _QUICK.search(text):
        return quick[1]
    if item.options:
        name = parse_option(text, item.options)
        return item.options[ord(name) - ord("A")] if name else None
    if kind in _NUMERIC:
        return _number(text)
    lists = _LIST.findall(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lists[-1] if lists else lines[-1].rstrip(".") if lines else None


def mathvista_score(extracted: str, item: TaskItem) -> float:
    """1 if an extracted answer is the right one at its precision.

    Of options, a letter names one, alone or in brackets; else the nearest in edit distance is
    meant, whatever its case. Numbers and lists are compared as texts once they are rounded.

    Source: MathVista's own rules, of which this gives the same values.

    Args:
        extracted: What was taken out of the solution; an empty text is nearest to the shortest
            option, as officially.
        item: Its options, reference, kind of answer and precision.
    """
    if not item.references:
        return 0.0
    return float(_normalized(extracted, item) == item.references[0])


def _normalized(extracted: str, item: TaskItem) -> str | None:
    if item.options:
        return _nearest_option(extracted.strip(), item.options)
    kind = item.facts.get("answer_type")
    if kind not in _NUMERIC:
        return extracted
    value = _float(extracted)
    if value is None:
        return None
    if kind == "float":
        return str(round(value, int(item.facts.get("precision", "0"))))
    return str(int(value)) if abs(value) != float("inf") and value == value else None


def _nearest_option(text: str, options: Sequence[str]) -> str:
    if bracketed := _IN_BRACKETS.search(text):
        text = bracketed[1].upper()
    letters = [letter(index) for index in range(len(options))]
    if text in letters:
        return options[letters.index(text)]
    return min(options, key=lambda option: edit_distance(text, option))


def _number(text: str) -> str | None:
    for marked in reversed(marked_answers(text)):
        if numbers := _numbers(plain_text(marked)):
            return numbers[-1]
    lines = [line for line in plain_text(text).splitlines() if _numbers(line)]
    sentences = [part for line in lines[-1:] for part in re.split(r"(?<=[.!?])\s+", line)]
    for sentence in reversed(sentences):
        if not _numbers(sentence):
            continue
        *_, start = 0, *(match.end() for match in _SETTLES.finditer(sentence))
        numbers = _numbers(sentence[start:])
        return numbers[0] if numbers and start else _numbers(sentence)[-1]
    return None


def _numbers(text: str) -> list[str]:
    """Digits; where there are none, number words."""
    found = [number.replace(",", "").lstrip("+") for number in _NUMBER.findall(text)]
    words = re.findall(r"[a-z]+", text.casefold()) if not found else ()
    return found or [DIGITS[word] for word in words if word in DIGITS and word != "none"]


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
