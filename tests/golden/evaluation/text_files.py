"""Items of every text benchmark in its official format, and a model that hashes its input.

20 plain ones of each, and 500 whose texts have what real files have: brackets, double and outer
spaces, lower-case starts, quotes, line ends, digits alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNT = 20
NASTY_COUNT = 500
NOUNS = [
    "anvil",
    "badge",
    "cello",
    "dingo",
    "easel",
    "ferry",
    "glove",
    "heron",
    "ivory",
    "jolly",
    "kiosk",
    "lemon",
    "mango",
    "nylon",
    "otter",
    "piano",
    "quilt",
    "raven",
    "sable",
    "tulip",
]
VERBS = ("lifts", "paints", "hides", "finds")

Rows = list[dict[str, Any]]


def toy_likelihood(context: str, continuation: str) -> tuple[float, bool]:
    """Log-likelihood and greediness of a continuation out of a hash of both texts."""
    digest = hashlib.sha256(json.dumps([context, continuation]).encode()).digest()
    per_character = 0.5 + int.from_bytes(digest[:4], "big") / 2**32
    return -per_character * len(continuation), digest[4] % 3 == 0


def toy_answer(context: str) -> str:
    """What the model writes: often a name of the answer, spelt in some way."""
    noun = next((noun for noun in reversed(NOUNS) if noun in context.lower()), "7")
    kind = hashlib.sha256(context.encode()).digest()[0] % 4
    return (f" {noun.upper()}", f" the {noun}", f" {noun}", f" {noun}s")[kind]


def toy_encode(text: str) -> list[int]:
    """Longest match first, over pieces that cross the border of words."""
    pieces = [" a", "a ", "an", "on", "er", "  ", "? A", ": ", "ll", "lift", "s ", " the", "the"]
    ids, place = [], 0
    while place < len(text):
        found = max(
            (piece for piece in pieces if text.startswith(piece, place)), key=len, default=""
        )
        ids.append(1000 + pieces.index(found) if found else ord(text[place]))
        place += len(found) or 1
    return ids


def arc() -> Rows:
    return [
        {
            "id": f"Mercury_{n}",
            "question": {
                "stem": f"Which one {VERBS[n % 4]} the {NOUNS[n]}?",
                "choices": [
                    {"text": f"{NOUNS[(n * 3 + k) % COUNT]} {'x' * k}".strip(), "label": label}
                    for k, label in enumerate("1234" if n % 5 == 0 else "ABCD")
                ],
            },
            "answerKey": ("1234" if n % 5 == 0 else "ABCD")[n % 4],
        }
        for n in range(COUNT)
    ]


def piqa() -> Rows:
    return [
        {
            "goal": f"To move the {NOUNS[n]},",
            "sol1": f"use a {NOUNS[n - 1]} and then wait",
            "sol2": f"lift it with the {NOUNS[n - 2]}",
            "label": n % 2,
        }
        for n in range(COUNT)
    ]


def lambada() -> Rows:
    return [
        {"text": f'He saw the {noun} and the {NOUNS[n - 1]}. "I take," he said, "the {noun}'}
        for n, noun in enumerate(NOUNS)
    ]


def winogrande() -> Rows:
    return [
        {
            "qID": f"q{n}-1",
            "sentence": f"The {NOUNS[n]} fits the {NOUNS[n - 1]}, for _ is very {VERBS[n % 4]}.",
            "option1": NOUNS[n],
            "option2": NOUNS[n - 1],
            "answer": "12"[n % 2],
        }
        for n in range(COUNT)
    ]


def hellaswag() -> Rows:
    return [
        {
            "ind": n,
            "activity_label": f"Cleaning the {NOUNS[n]}",
            "ctx_a": f"A man holds a {NOUNS[n]}.",
            "ctx_b": "he" if n % 2 else "",
            "endings": [
                f" {VERBS[k]} it [step] with  the {NOUNS[n - k]}. [title] Go on." for k in range(4)
            ],
            "label": n % 4,
        }
        for n in range(COUNT)
    ]


def sciq() -> Rows:
    return [
        {
            "question": f"What {VERBS[n % 4]} the {NOUNS[n]}?",
            "distractor1": NOUNS[n - 1],
            "distractor2": f"{NOUNS[n - 2]} oil",
            "distractor3": f"an {NOUNS[n - 3]}",
            "correct_answer": f"{NOUNS[n]} power",
            "support": f"  The {NOUNS[n]} is known for its power." if n % 3 else "",
        }
        for n in range(COUNT)
    ]


def triviaqa() -> Rows:
    return [
        {
            "QuestionId": f"tc_{n}",
            "Question": f"Who {VERBS[n % 4]} the {NOUNS[n]}",
            "Answer": {"Value": NOUNS[n], "Aliases": [NOUNS[n], f"The {NOUNS[n].title()}!"]},
        }
        for n in range(COUNT)
    ]


def webqs() -> Rows:
    return [
        {
            "utterance": f"who {VERBS[n % 4]} the {NOUNS[n]}?",
            "targetValue": f'(list (description "{NOUNS[n].title()} Smith")'
            f" (description {NOUNS[n - 1]}) (description {NOUNS[n - 1]}s))",
        }
        for n in range(COUNT)
    ]


ROWS: dict[str, Callable[[], Rows]] = {
    "arc_easy": arc,
    "arc_challenge": arc,
    "piqa": piqa,
    "lambada": lambada,
    "winogrande": winogrande,
    "hellaswag": hellaswag,
    "sciq": sciq,
    "triviaqa": triviaqa,
    "webqs": webqs,
}
"""Rows of each text task file's format."""


_KEPT = frozenset({"id", "qID", "QuestionId", "label", "answerKey", "ind"})
"""Fields that are no texts."""

_CHANGES: list[Callable[[str], str]] = [
    lambda text: f" {text}",
    lambda text: f"  {text}",
    lambda text: f"{text} ",
    lambda text: text.replace(" ", "  "),
    lambda text: f"[header] {text}",
    lambda text: f"{text} [title] More of it. [step] Go on [substeps] now",
    lambda text: f"{text} [title]  [a] [b]",
    lambda text: f"[{text}]",
    lambda text: f"{text} [open",
    lambda text: f'"{text}"',
    lambda text: f"'{text}'",
    lambda text: f'it\'s "{text}"',
    lambda text: text.capitalize(),
    lambda text: text.upper(),
    lambda text: f"{text}\n",
    lambda text: f"{text}\nand more",
    lambda text: f"{text}\u2028end",
    lambda text: f"{text} {{{{x}}}} {{% y %}}",
    lambda text: f"\\{text}\\n",
    lambda text: f"{text}\t",
    lambda text: f"{text}\u00a0",
    lambda text: f"\u00e9{text}\U0001f600",
    lambda text: f"{text}, {text}",
    lambda text: f"{text}.",
    lambda _text: "7",
    lambda _text: "(a)",
]


def nasty_rows(task: str) -> Rows:
    """500 rows, and one more that may be a solved example."""
    rng = random.Random(f"text rows of {task}")
    plain = ROWS[task]()
    rows = [json.loads(json.dumps(plain[n % COUNT])) for n in range(NASTY_COUNT + 1)]
    return [_changed(row, rng) for row in rows]


def _changed(value: Any, rng: random.Random, field: str = "") -> Any:
    if isinstance(value, dict):
        return {
            name: value[name]
            if name in _KEPT or (name == "answer" and "sentence" in value)
            else _changed(value[name], rng, name)
            for name in value
        }
    if isinstance(value, list):
        return [_changed(each, rng) for each in value]
    if not isinstance(value, str):
        return value
    if field == "targetValue":
        return _changed_target(rng)
    text = value
    for change in rng.sample(_CHANGES, k=rng.choice([0, 1, 1, 2])):
        text = change(text)
    # WinoGrande has a gap in every sentence.
    return f"{text} _ it" if field == "sentence" and "_" not in text else text


def _changed_target(rng: random.Random) -> str:
    """Names as WebQuestions lists them, with and without quotes, some with others' beginnings."""
    nouns = rng.sample(NOUNS, k=rng.randint(1, 3))
    names = [
        name
        for noun in nouns
        for name in (noun, f"{noun} oil", f"The {noun}", f"{noun} (film", f"{noun}'s", f" {noun}")
        if rng.random() < 0.4
    ] or nouns
    quoted = [f'"{name}"' if " " in name or rng.random() < 0.3 else name for name in names]
    if rng.random() < 0.2:
        quoted.append('"a \\"b\\" c"')
    return "(list " + " ".join(f"(description {name})" for name in quoted) + ")"


def write_text_files(task: str, folder: Path, rows: Rows | None = None) -> dict[str, str]:
    """Writes rows of a task in its official format; without any, the plain ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ROWS[task]() if rows is None else rows
    path = folder / f"{task}.json"
    files = {"questions": str(path)}
    match task:
        case "triviaqa":
            path.write_text(json.dumps({"Data": rows, "Version": 1.0}))
        case "sciq" | "webqs":
            path.write_text(json.dumps(rows))
        case _:
            lines = [
                {k: v for k, v in row.items() if task != "piqa" or k != "label"} for row in rows
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    if task == "piqa":
        labels = folder / "labels.lst"
        labels.write_text("".join(f"{row['label']}\n" for row in rows))
        files["labels"] = str(labels)
    return files
