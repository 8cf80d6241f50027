"""Generated answers in the manner of each benchmark, with everything its scorer has a rule for.

Three kinds: `verbatim` (what a person wrote), `perturbed` (that, spelt in another way) and `raw`
(what models write around an answer). No text is from a benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

KINDS = ("verbatim", "perturbed", "raw")


class Case(NamedTuple):
    """An answer with what people wrote."""

    answer: str
    references: tuple[str, ...]


# fmt: off
WORDS = [
    "a", "an", "the", "yes", "no", "none", "zero", "one", "two", "three", "ten", "10", "2", "cat",
    "dogs", "red", "blue", "t-shirt", "frisbee", "man's", "dont", "don't", "cant", "couldnt",
    "couldn'tve", "hadnt've", "hes", "he's", "im", "ive", "isnt", "itd've", "its", "lets", "maam",
    "mightve", "oclock", "o'clock", "ow'sat", "shes", "somebody'd", "somebodyd", "someones",
    "thats", "theres", "theyre", "twas", "wasnt", "weve", "whats", "wheres", "wholl", "wont",
    "wouldnt", "yall", "y'all", "youd", "youre", "youve", "1,000", "3.5", ".5", "5.", "u.s.",
    "mr.", "St.", "N/A", "left/right", "10:30", "$5", "50%", "#1", "(left)", "[right]",
    "\"stop\"", "ice-cream", "hot_dog", "a+b", "x=y", "<b>", "@home", "`tick`", "what?", "wow!",
    "e-mail", "Red", "YES", "The", "tie,shirt", "black,white", "no,", "no.", "...", "&", ";",
    "a;b", "{x}", "\n", "12,5", "x,y", "the beatles", "6-12", "www.ofog.org", "unanswerable",
    "shouldn't", "couldnt’ve", "don’t", "weve", "whove", "caf\u00e9", "STRA\u00dfE", "\u0661\u0662",
    "a\u00a0- b", "\r", "A.M.", "nike's", "...................................", "x-ray's",
]
# fmt: on


CHART_LABELS = [
    "14",
    "0.57",
    "62",
    "No",
    "Yes",
    "Inspired",
    "1.216666667",
    "green line",
    "2014",
    "U.S.",
    "-3",
    "Over 30 mins",
    "93.45",
    "23%",
    "0.5%",
    "100%",
    "1,931",
    "977633",
    "[3, 5]",
    "0",
    "0.0",
    "1e3",
    "Mexico",
    "20 %",
    "%",
    "nan",
    "inf",
    "-inf",
    "1_000",
    "+7",
    ".5",
    "5.",
    "Dec 2016",
    "$5",
    "1:2",
    "\u0661\u0662",
    "Democrat (scores 60 to 100)",
    "",
]
PAGE_ANSWERS = [
    "tobacco  company",
    "12/15/88",
    "Dear Dr. Lobo",
    "$ 1,200.00",
    "R. J. Reynolds",
    "a",
    "II",
    "0.28",
    "Denver  R. Broncos",
    "STRASSE",
    "Stra\u00dfe",
    "page\t4",
    " Total ",
    "the committee",
    "\u0130zmir",
    "",
    "4:30 p.m. - 5:00 p.m.",
    "University of California, San Diego",
]
NORMAL_WORDS = [
    "yes",
    "no",
    "0",
    "2",
    "10",
    "cat",
    "dogs",
    "red",
    "blue",
    "frisbee",
    "don’t",
    "dont",
    "don't",
    "couldn’t’ve",
    "couldntve",
    "we've",
    "weve",
    "wheres",
    "where's",
    "what’s",
    "whats",
    "couldve",
    "could've",
    "cant",
    "can't",
    "unanswerable",
    "unsuitable",
    "1000",
    "3.5",
    "10:30",
    "white dog",
]
"""Words as VizWiz's people wrote them: in the form that its scorer brings answers to."""
# fmt: on
YES_NO = [
    "Yes",
    "No",
    "yes",
    "no",
    "NO",
    "YES.",
    "No.",
    "no,",
    "Yes, there is a dog",
    "not",
    "Not at all",
    "There is no dog in the image.",
    "There isn't one",
    "I do not know",
    "Yes. No.",
    "No. Yes.",
    "",
    "The answer is no",
    "the answer is yes",
    "  yes",
    "\tno",
    "no\tdog",
    "Nope",
    "none",
    "noon",
    "Yes\u00a0no",
    "cannot",
    "maybe",
    "It is not. Yes",
    " No",
    "y",
    "'no'",
    "**No**",
    "a. no",
    "yesno",
]


def vqa_cases(kind: str, count: int, people: int = 10, words: Sequence[str] = WORDS) -> list[Case]:
    """Ten answers each, many of them alike in various spellings; fewer people answer several times.

    Args:
        kind: One of `KINDS`.
        count: Cases.
        people: Who wrote the ten answers, each the same number of times.
        words: What answers consist of.
    """
    rng = random.Random(f"vqa {kind} {people} {len(words)}")
    cases = []
    for _ in range(count):
        candidates = [_text(rng, words) for _ in range(rng.choice([1, 1, 1, 2, 3, 5]))]
        spell = _spelt if rng.random() < 0.6 else lambda _rng, text: text
        humans = [spell(rng, rng.choice(candidates)) for _ in range(people)] * (10 // people)
        cases.append(Case(_answered(rng, kind, humans, words), tuple(humans)))
    return cases


def word_cases(kind: str, count: int) -> list[Case]:
    """One lower-case answer without a mark at its end, as GQA has."""
    rng = random.Random(f"words {kind}")
    usable = [word for word in WORDS if word == word.strip().lower() and not word.endswith(".")]
    references = [" ".join(rng.choices(usable, k=rng.choice([1, 1, 2]))) for _ in range(count)]
    return [Case(_answered(rng, kind, [text]), (text,)) for text in references]


def page_cases(kind: str, count: int) -> list[Case]:
    """One to four accepted answers, as DocVQA and InfographicVQA have."""
    rng = random.Random(f"pages {kind}")
    cases = []
    for _ in range(count):
        accepted = rng.sample(PAGE_ANSWERS, k=rng.choice([1, 1, 2, 4]))
        answer = _answered(rng, kind, accepted)
        if kind == "perturbed" and answer and rng.random() < 0.8:
            letters = list(answer)
            for _ in range(rng.randint(1, 1 + len(letters) // 2)):
                letters[rng.randrange(len(letters))] = rng.choice(["", "x", "  ", "E", "\u00df"])
            answer = "".join(letters)
        cases.append(Case(answer, tuple(accepted)))
    return cases


def chart_cases(kind: str, count: int) -> list[Case]:
    """One label, often a number, as ChartQA has; perturbed numbers lie about the 5 %."""
    rng = random.Random(f"charts {kind}")
    cases = []
    for _ in range(count):
        label = rng.choice(CHART_LABELS)
        if rng.random() < 0.4:
            label = rng.choice([str(rng.randint(1, 5000)), f"{rng.uniform(0, 100):.2f}"])
        answer = _answered(rng, kind, [label])
        if kind == "perturbed" and label.replace(".", "", 1).isdecimal() and label.isascii():
            factor = rng.choice(
                [0.9, 0.949, 0.95, 0.951, 1, 1.0, 1.049, 1.05, 1.051, -1, 100, 0.01]
            )
            number = float(label) * factor
            answer = rng.choice([f"{number:g}", f"{number:,.2f}", f"{number:.4f}%", f" {number} "])
        cases.append(Case(answer, (label,)))
    return cases


def yes_no_cases(kind: str, count: int) -> list[Case]:
    """Yes and no in turn, as POPE and MME ask; verbatim answers are the label or the other one."""
    rng = random.Random(f"yes or no {kind}")
    cases = []
    for number in range(count):
        label = ("yes", "no")[number % 2]
        match kind:
            case "verbatim":
                answer = label if rng.random() < 0.8 else ("no", "yes")[number % 2]
            case "perturbed":
                answer = rng.choice(
                    [label.title(), f"{label.title()}.", f" {label}", label.upper()]
                )
            case _:
                answer = rng.choice(YES_NO)
        cases.append(Case(answer, (label,)))
    return cases


def _text(rng: random.Random, words: Sequence[str]) -> str:
    separator = rng.choice([" ", " ", " ", "  ", "\t", " \n", ", ", "-"])
    chosen = rng.choices(words, k=rng.choice([1, 1, 1, 2, 2, 3, 4]))
    return rng.choice(["", "", "", " "]) + separator.join(chosen)


def _answered(
    rng: random.Random, kind: str, references: list[str], words: Sequence[str] = WORDS
) -> str:
    text = rng.choice(references)
    match kind:
        case "verbatim":
            return text
        case "perturbed":
            return _spelt(rng, text) if rng.random() < 0.9 else _text(rng, words)
    return _as_a_model_writes(rng, text)


def _spelt(rng: random.Random, text: str) -> str:
    match rng.randrange(10):
        case 0:
            return text.upper()
        case 1:
            return f"the {text}"
        case 2:
            return f"{text}."
        case 3:
            return text.replace("'", "")
        case 4:
            return f" {text}\n"
        case 5:
            return text.replace("-", " ").replace(",", "")
        case 6:
            return text.capitalize()
        case 7:
            return text.replace(" ", "  ")
        case 8:
            return f"{text}, {text}"
    return text


def _as_a_model_writes(rng: random.Random, text: str) -> str:
    around: list[Callable[[str], str]] = [
        lambda text: f" {text}",
        lambda text: f"{text}.",
        lambda text: f" {text.capitalize()}.",
        lambda text: f"The answer is {text}.",
        lambda text: f"It is {text}",
        lambda text: f'"{text}"',
        lambda text: f"**{text}**",
        lambda text: f"{text}..",
        lambda text: f"{text}?",
        lambda text: f"Answer: {text}",
        lambda text: f"{text}\nQuestion: what is it?",
        lambda text: f"{text} and more, I think",
        lambda text: f"({text})",
        lambda text: f"a {text}",
        lambda text: f"{text}\t",
        lambda text: text.title(),
        lambda text: text,
        lambda _text: "",
        lambda _text: "Sorry, I can't tell.",
        lambda _text: "unanswerable",
    ]
    return rng.choice(around)(text)


COUNT = 600
"""Answers of each kind."""

CASES: dict[str, Callable[[str, int], list[Case]]] = {
    "vqav2": vqa_cases,
    "okvqa": lambda kind, count: vqa_cases(kind, count, people=5),
    "textvqa": vqa_cases,
    "vizwiz": lambda kind, count: vqa_cases(
        kind, count, words=[*NORMAL_WORDS, *NORMAL_WORDS, *WORDS]
    ),
    "vqav2_sft": vqa_cases,
    "gqa": word_cases,
    "docvqa": page_cases,
    "chartqa": chart_cases,
    "pope": yes_no_cases,
    "mme": yes_no_cases,
}
"""From a task to the answers it is compared on."""
