"""MathVista: extracting the answer from a solution, and comparing it."""

from __future__ import annotations

from mm1_pipeline.evaluation.formats.base import letter
from mm1_pipeline.evaluation.option_parsing import parse_option
from mm1_pipeline.evaluation.tasks import TaskItem
from mm1_pipeline.evaluation.text_metrics import edit_distance, exact_match, numbers_in

RULES = "rules-1"
"""Names extraction without a judge in every row: the official one asks a language model."""

EXTRACTION_PROMPT = """\
Below are a problem and a solution. Write the final answer that the solution gives, and nothing
else: a number without unit, the text of the chosen option, or a list. Write "none" if it gives
no answer.

Problem: {question}

Solution: {answer}
"""
"""What a judge is asked; our own wording."""


def extract_by_rules(text: str, item: TaskItem) -> str:
    """The answer inside a solution: the option it names, its last number, or its last line."""
    if item.options:
        name = parse_option(text, item.options)
        return item.options[ord(name) - ord("A")] if name else ""
    if item.facts.get("answer_type") in ("integer", "float"):
        numbers = numbers_in(text)
        return f"{numbers[-1]:g}" if numbers else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else ""


def mathvista_score(extracted: str, item: TaskItem) -> float:
    """1 if an extracted answer is the right one at its precision.

    Of options, the one nearest in edit distance is meant, or the one a letter names.
    """
    if not item.references or not extracted:
        return 0.0
    right = item.references[0]
    if item.options:
        return float(_nearest_option(extracted, item.options) == right)
    kind = item.facts.get("answer_type")
    if kind in ("integer", "float"):
        given, expected = numbers_in(extracted), numbers_in(right)
        if len(given) != 1 or len(expected) != 1:
            return 0.0
        if kind == "integer":
            return float(int(given[0]) == int(expected[0]))
        digits = int(item.facts.get("precision", "0"))
        return float(round(given[0], digits) == round(expected[0], digits))
    return exact_match(extracted.replace(" ", ""), [right.replace(" ", "")])


def _nearest_option(text: str, options: tuple[str, ...]) -> str:
    letters = [letter(index) for index in range(len(options))]
    if text.strip("() .").upper() in letters:
        return options[letters.index(text.strip("() .").upper())]
    return min(options, key=lambda option: edit_distance(text.casefold(), option.casefold()))
