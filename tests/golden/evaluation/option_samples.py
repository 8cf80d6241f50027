"""Questions and answers of our own, in the official formats, for the official scorers and ours."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

_SUBJECTS = ["Accounting", "Biology", "Math", "Music", "History", "Public_Health", "Electronics"]
_NOUNS = [
    "kite",
    "lamp",
    "river",
    "anvil",
    "tulip",
    "barrel",
    "magnet",
    "glacier",
    "ladder",
    "beetle",
]
_COLOURS = ["red", "blue", "amber", "violet", "teal", "olive"]


class OptionAnswer(NamedTuple):
    """A question with options and what a model wrote; `settles` says that it names one option."""

    key: str
    subject: str
    options: tuple[str, ...]
    right: str
    answer: str
    kind: str


def option_answers(count: int) -> list[OptionAnswer]:
    """Answers that name an option in the ways that models do, several ones, or none."""
    rng = random.Random(20261130)
    rows = []
    for number in range(count):
        size = rng.choice([2, 3, 4, 4, 4, 5])
        noun = rng.choice(_NOUNS)
        texts = rng.choice(
            [
                [f"a {colour} {noun}" for colour in _COLOURS],
                [f"{5 * step + number % 5} cm" for step in range(1, 7)],
                [f"{name.title()} in the {noun}" for name in _COLOURS],
            ]
        )
        options = tuple(rng.sample(texts, size))
        letters = "ABCDE"[:size]
        said, right = rng.choice(letters), rng.choice(letters)
        kind = rng.choice(list(_WORDINGS))
        text = options[letters.index(said)]
        other = rng.choice([letter for letter in letters if letter != said])
        wordings = {"X": said, "x": said.lower(), "T": text, "O": other}
        answer = rng.choice(_WORDINGS[kind]).format(**wordings)
        subject = rng.choice(_SUBJECTS)
        key = f"validation_{subject}_{number}"
        rows.append(OptionAnswer(key, subject, options, right, answer, kind))
    return rows


_WORDINGS = {
    "letter": ["{X}", "({X})", "{X}.", "{x}", "{X}\n", " {X}"],
    "heading": ["{X}. {T}", "({X}) {T}", "{X}: {T}"],
    "announced": [
        "The answer is {X}.",
        "Answer: {X}",
        "The correct option is ({X}).",
        "It is seen on the left side of the picture.\nThe answer is {X}.",
        "BECAUSE: it stands there. The answer is {X}. {T}",
    ],
    "marked": [
        "**{X}**",
        "**Answer:** {X}",
        "\\boxed{{{X}}}",
        "<answer>{X}</answer>",
        '"{X}"',
        "Therefore, **{X}**",
        "answer:{x}",
        "The final answer is $\\boxed{{\\text{{{X}}}}}$.",
    ],
    "settled": [
        "Option {O} is too large. The answer is {X}.",
        "First ({O}) seems right, but the measure is another. So the answer is ({X}).",
        "({O}) is wrong since it is not shown. Therefore, ({X}) is the correct answer.",
    ],
    "text": ["{T}", "I can see that what is meant there is {T} indeed"],
    "several": [
        "({O}) or ({X})",
        "{O} and {X}",
        "It could be ({O}) and also ({X}) in this picture",
    ],
    "none": ["I cannot tell from this picture.", "", "A bird sings there for a while today."],
}
"""Wordings by kind; X is the letter meant, x its small one, T its text, O another letter."""


def open_answers(count: int) -> list[tuple[list[str], str]]:
    """References of an open question, and an answer with numbers, cues, lines and equations."""
    rng = random.Random(20261201)
    # fmt: off
    pieces = [
        "the result is", "so", "thus", "=", "therefore", "final answer", "could be", "$", "1,000",
        "1000", "24", "24.0", "3.14159", "3.14", "-5", "1e3", "2.5E-3", ".5", "50%", "red sea",
        "Red Sea", "x", "A", "b", "credible", "red", "is", ".", ". The", "\n", "\n\n", "12,5", "/",
        "* 12", "is:", "result :", "m/s", "nan", "answer", "5 cm", "24 dollars.", "so .", "100,000",
    ]
    references = [
        ["1000"], ["24"], ["24", "24.0"], ["red sea"], ["red"], ["x"], ["3.14"], ["-5"], ["0.5"],
        ["1,000"], ["B"], ["0.0025", "2.5e-3"], ["50%"], ["5 cm", "5"], ["100000"],
    ]
    # fmt: on
    rows = []
    for _ in range(count):
        separator = rng.choice([" ", " ", " ", ""])
        answer = separator.join(rng.choices(pieces, k=rng.randint(1, 9)))
        right = rng.choice(references)
        if rng.random() < 0.3:
            answer += rng.choice([" ", " = ", "\nThe answer is ", " so "]) + rng.choice(right)
        rows.append((right, answer))
    return rows


def extractions(count: int) -> list[tuple[dict[str, Any], str]]:
    """Problems in MathVista's format and what was extracted: as it is, or disturbed."""
    rng = random.Random(20261202)
    rows = []
    for number in range(count):
        kind = rng.choice(["text", "text", "text", "integer", "float", "list"])
        problem: dict[str, Any] = {"choices": None, "precision": None, "answer_type": kind}
        match kind:
            case "text":
                words = rng.choice(
                    [
                        ["Yes", "No"],
                        ["increase", "decrease", "stay the same "],
                        ["A", "B", "C", "D"],
                        ["(a)", "(b)", "(c)"],
                        ["30°", "35°", "40°", "45°"],
                        ["Medium Periwinkle", "Periwinkle", "Dark Periwinkle"],
                        ["2.5", "3.5", "25"],
                    ]
                )
                problem["choices"] = rng.sample(words, len(words))
                answer = rng.choice(words)
            case "integer":
                answer = str(rng.randint(-5, 60))
            case "float":
                problem["precision"] = rng.choice([1, 2])
                answer = str(round(rng.uniform(-3, 200), problem["precision"]))
            case _:
                answer = str([rng.randint(0, 9) for _ in range(rng.randint(1, 4))])
        problem["answer"] = answer
        rows.append((problem, _extracted(rng, problem, answer, number)))
    return rows


def _extracted(rng: random.Random, problem: dict[str, Any], answer: str, number: int) -> str:
    choices = problem["choices"]
    if choices:
        given = rng.choice([answer, rng.choice(choices)])
        letter = "ABCDEFG"[choices.index(given)]
        forms = [
            given, given.lower(), given.upper(), letter, letter.lower(), f"({letter})",
            f" {given} ",
            f"({letter.lower()}) {given}", f"{letter}. {given}", f"The answer is {given}.", "", "Z",
            "None", f"({rng.choice('ABCDEFG')}) {given}", given[: len(given) // 2], "not provided",
        ]  # fmt: skip
        return rng.choice(forms)
    value = answer if rng.random() < 0.7 else str(number % 70)
    forms = [
        value, f" {value} ", f"{value}.0", f"{value} cm", f"${value}", f"{value}%", "", "none",
        value.replace(" ", ""), f"{value}4", f"1e{number % 3}", "1,000", f"+{value}", "nan", "inf",
    ]  # fmt: skip
    return rng.choice(forms[:2] if rng.random() < 0.5 else forms)


def reviews(count: int) -> list[tuple[str, str]]:
    """Categories of LLaVA-Bench and replies of a judge, each of which holds two marks."""
    rng = random.Random(20261203)
    kinds = ["conv", "detail", "complex"]
    rows = []
    for _ in range(count):
        marks = [rng.choice([rng.randint(1, 10), rng.randint(2, 20) / 2]) for _ in range(2)]
        form = rng.choice(["{} {}", "{} {}\nThe first one says more.", "{}, {}", "{},{}"])
        rows.append((rng.choice(kinds), form.format(*marks)))
    return rows


def grades(count: int) -> list[tuple[tuple[str, ...], float]]:
    """Capabilities that a question of MM-Vet needs, and its grade."""
    rng = random.Random(20261204)
    sets = [
        ("rec",), ("ocr",), ("ocr", "math"), ("rec", "know"), ("rec", "gen", "know"),
        ("ocr", "spat"), ("rec", "spat", "ocr"), ("ocr", "gen", "spat"),
    ]  # fmt: skip
    return [(rng.choice(sets), rng.randint(0, 10) / 10) for _ in range(count)]


def yes_no_answers(count: int) -> list[tuple[str, str, str, str]]:
    """Category, image, right answer and answer of pairs of MME's questions."""
    rng = random.Random(20261205)
    # fmt: off
    categories = [
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
        "artwork", "OCR", "commonsense_reasoning", "numerical_calculation", "text_translation",
        "code_reasoning",
    ]
    forms = [
        "Yes", "No", "yes", "no", "Yes.", "No, it is not", "YES, it is", "Not", "none", "maybe",
        "Yesterday", "I know", " yes", "Answer: yes", "is not", "noyes", "*yes*", "It is no",
    ]
    # fmt: on
    rows = []
    for number in range(count // 2):
        category = categories[number % len(categories)]
        for right in ("yes", "no"):
            given = right if rng.random() < 0.6 else rng.choice(forms)
            rows.append((category, f"{number}.jpg", right, given))
    return rows
