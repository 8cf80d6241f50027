"""What is learnt from: captions, interleaved documents and conversations of three styles.

Each style lies in a folder of its own, under its own licence, and no picture composes drawings of
two: OpenMoji's licence asks that what is made from its drawings is shared alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import pyarrow as pa
from concepts import Concept, with_article
from pictures import (
    OPPOSITES,
    SIDE,
    background,
    colours,
    composed,
    encode,
    named_colours,
    single,
    varied,
)

Entry = dict[str, object]

DOCUMENTS = {
    "name": 50, "kind": 50, "group": 60, "colour": 40, "opposite": 60, "count": 70, "missing": 30,
    "question": 140,
}  # fmt: skip
"""How many documents of each task a style has."""
MIN_EXAMPLES, MAX_EXAMPLES = 3, 8
NUM_GROUPS = 3
"""Groups or kinds that the examples of one document are of."""
NUM_WORDS = ("no", "one", "two", "three", "four")
COUNT_CELL, COUNT_JITTER = SIDE // 2, 2
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
CONVERSATIONS = {"single": 150, "pair": 90, "quarters": 110, "missing": 40}
"""How many conversations of each sort a style has."""
SHORT = "\nAnswer the question using a single word or phrase."


def captions(concepts: list[Concept], style: str) -> pa.Table:
    """One row a picture, with a column for each way to caption it."""
    shown = [c for c in concepts if c.is_seen and style in c.drawings]
    return pa.table(
        {
            "key": [f"{style}_{concept.code_points}" for concept in shown],
            "image": pa.array([encode(single(concept, style)) for concept in shown], pa.binary()),
            "name": [with_article(concept.name) for concept in shown],
            "kind": [with_article(concept.kind or concept.group) for concept in shown],
            "group": [with_article(concept.group) for concept in shown],
            "levels": [levels_caption(concept) for concept in shown],
            "description": [describe(concept, style) for concept in shown],
        }
    )


def levels_caption(concept: Concept) -> str:
    """From general to special: `an animal, a bird, an owl`."""
    return ", ".join(map(with_article, concept.levels))


def describe(concept: Concept, style: str) -> str:
    """Several sentences: name and background, then kind, colours and keywords in any order."""
    rng = random.Random(f"describe/{style}/{concept.code_points}")
    name = with_article(concept.name)
    first = (
        f"{name[0].upper()}{name[1:]} on a {background(style, concept.code_points)[0]} background."
    )
    found = named_colours(concept, style)
    if len(found) == 1:
        colour = rng.choice((f"It is {found[0]}.", f"The colour is {found[0]}."))
    else:
        colour = f"{rng.choice(('It is', 'The colours are'))} {_enumerate(found)}."
    group = f"In general it is {with_article(concept.group)}"
    kind = f", more closely {with_article(concept.kind)}" if concept.kind else ""
    rest = [colour, f"{group}{kind}."]
    if concept.keywords:
        rest.append(f"It makes people think of {_enumerate(list(concept.keywords))}.")
    rng.shuffle(rest)
    return " ".join([first, *rest])


def _enumerate(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@cache
def varied_bytes(concept: Concept, style: str) -> bytes:
    """The picture as documents and conversations have it."""
    return encode(varied(concept, style))


class Deck:
    """Deals concepts in turn, shuffled anew when all were dealt: all are shown equally often."""

    def __init__(self, concepts: list[Concept], rng: random.Random) -> None:
        self.concepts, self._rng = concepts, rng
        self._left: list[Concept] = []

    def deal(self, wanted: Callable[[Concept], object] = lambda _: True) -> Concept:
        """The next one that is wanted."""
        for _ in range(2):
            for place, concept in enumerate(self._left):
                if wanted(concept):
                    return self._left.pop(place)
            self._left += self._rng.sample(self.concepts, len(self.concepts))
        raise ValueError("found no concept that is wanted")

    def deal_several(self, number: int, wanted: Callable[[Concept], object]) -> list[Concept]:
        """Different ones."""
        dealt: list[Concept] = []
        for _ in range(number):
            dealt.append(self.deal(lambda c: c not in dealt and wanted(c)))
        return dealt


@dataclass(frozen=True)
class Example:
    """Pictures, one or two, and what a document says after them."""

    images: tuple[bytes, ...]
    text: str


def documents(concepts: list[Concept], style: str) -> pa.Table:
    """Documents of one style, in OBELICS's layout, the tasks mixed.

    In all but `question` nothing says what to answer: pictures are followed by `Answer:` and a
    word, and which word only the earlier ones tell.
    """
    shown = [c for c in concepts if c.is_seen and style in c.drawings]
    rng = random.Random(f"documents/{style}")
    deck = Deck(shown, rng)
    tasks = [task for task, number in DOCUMENTS.items() for _ in range(number)]
    rng.shuffle(tasks)
    texts: list[list[str | None]] = []
    images: list[list[bytes | None]] = []
    for task in tasks:
        most = MAX_EXAMPLES // 2 if task == "missing" else MAX_EXAMPLES
        examples = list(_examples(task, style, rng.randint(MIN_EXAMPLES, most), deck, rng))
        texts.append([])
        images.append([])
        for example in examples:
            images[-1] += [*example.images, None]
            texts[-1] += [*[None] * len(example.images), example.text]
    return pa.table(
        {
            "key": [f"{style}_{number:05d}_{task}" for number, task in enumerate(tasks)],
            "images": pa.array(images, pa.list_(pa.binary())),
            "texts": pa.array(texts, pa.list_(pa.string())),
        }
    )


def _examples(
    task: str, style: str, number: int, deck: Deck, rng: random.Random
) -> Iterator[Example]:
    if task == "count":
        for _ in range(number):
            picture, count = counted(style, deck, rng)
            yield Example((encode(picture),), f"Answer: {NUM_WORDS[count]}")
        return
    if task == "missing":
        for _ in range(number):
            whole, rest, gone = missing(style, deck, rng)
            yield Example((encode(whole), encode(rest)), f"Answer: {gone.name}")
        return
    if task in ("name", "question"):
        chosen = deck.deal_several(number, lambda _: True)
    else:
        # Few groups or kinds, evenly, so that earlier examples show the words of later answers.
        sizes = Counter(one_word(task, concept, style) for concept in deck.concepts)
        large = sorted(word for word, size in sizes.items() if word and size >= MAX_EXAMPLES)
        few = rng.sample(large, NUM_GROUPS) if task in ("group", "kind") else large
        chosen = []
        for word in [rng.choice(few) for _ in range(number)]:
            is_new = partial(_answers_to, task, style, word, chosen)
            chosen.append(deck.deal(is_new))
    for concept in chosen:
        if task == "question":
            question, answer = ask(concept, style, rng)
            text = f"Question: {question} Short answer: {answer}"
        else:
            text = f"Answer: {one_word(task, concept, style)}"
        yield Example((varied_bytes(concept, style),), text)


def _answers_to(task: str, style: str, word: str, others: list[Concept], concept: Concept) -> bool:
    return one_word(task, concept, style) == word and concept not in others


def one_word(task: str, concept: Concept, style: str) -> str:
    """What a task answers of one picture."""
    match task:
        case "name":
            return concept.name
        case "kind":
            return concept.kind
        case "group":
            return concept.group
    colour = colours(concept, style)[0] or ""
    return OPPOSITES.get(colour, "") if task == "opposite" else colour


GROUPS = (
    "face", "person", "animal", "plant", "food", "drink", "place", "vehicle", "clothing", "symbol",
    "object", "hand",
)  # fmt: skip
"""Groups that are asked for."""


def ask(concept: Concept, style: str, rng: random.Random) -> tuple[str, str]:
    """One question about a picture and its short answer; names to a third."""
    colour = colours(concept, style)[0]
    forms = ["name", "name", "group", "is_group", "is_group"]
    forms += ["kind"] if concept.kind else []
    forms += ["colour", "is_colour"] if colour else []
    match rng.choice(forms):
        case "name":
            return "What is this?", concept.name
        case "group":
            return "What is this in general?", concept.group
        case "kind":
            return "What kind of thing is this?", concept.kind
        case "colour":
            return "What colour is it?", colour or ""
        case "is_colour":
            is_it = rng.random() < 0.5
            other = rng.choice(
                [c for c in ("red", "yellow", "green", "blue", "brown") if c != colour]
            )
            return f"Is it {colour if is_it else other}?", "yes" if is_it else "no"
        case _:
            is_it = rng.random() < 0.5
            asked = (
                concept.group if is_it else rng.choice([g for g in GROUPS if g != concept.group])
            )
            return f"Is this {with_article(asked)}?", "yes" if is_it else "no"


def counted(style: str, deck: Deck, rng: random.Random) -> tuple[object, int]:
    """One picture with two to four drawings, the same or different ones."""
    count = rng.randint(2, 4)
    if rng.random() < 0.5:
        chosen = [deck.deal()] * count
    else:
        chosen = deck.deal_several(count, lambda _: True)
    quarters: list[tuple[Concept, str] | None] = [None] * 4
    for place, concept in zip(rng.sample(range(4), count), chosen, strict=True):
        quarters[place] = (concept, style)
    return composed(quarters, COUNT_CELL, rng, jitter=COUNT_JITTER), count


def missing(style: str, deck: Deck, rng: random.Random) -> tuple[object, object, Concept]:
    """A picture of four drawings, the same without one of them, and that one."""
    chosen = deck.deal_several(4, lambda _: True)
    place, seed = rng.randrange(4), rng.random()
    whole: list[tuple[Concept, str] | None] = [(concept, style) for concept in chosen]
    rest = [one if number != place else None for number, one in enumerate(whole)]
    drawn = [composed(one, COUNT_CELL, random.Random(seed)) for one in (whole, rest)]
    return drawn[0], drawn[1], chosen[place]


def conversations(concepts: list[Concept], style: str) -> tuple[list[Entry], dict[str, bytes]]:
    """Conversations about one style's pictures in LLaVA's layout, and the pictures by name."""
    shown = [c for c in concepts if c.is_seen and style in c.drawings]
    rng = random.Random(f"conversations/{style}")
    deck = Deck(shown, rng)
    images: dict[str, bytes] = {}
    entries: list[Entry] = []

    def keep(name: str, data: bytes) -> str:
        path = f"{style}/{name}.webp"
        images[path] = data
        return path

    singles = [deck.deal() for _ in range(CONVERSATIONS["single"])]
    for number, concept in enumerate(singles):
        image = keep(concept.code_points, varied_bytes(concept, style))
        turns = _about_one(concept, style, rng)
        entries.append(_entry(f"single_{style}_{number:04d}", [image], turns))
    for number in range(CONVERSATIONS["pair"]):
        first = rng.choice(singles)
        second = rng.choice([c for c in singles if c.group != first.group])
        pair = [f"{style}/{concept.code_points}.webp" for concept in (first, second)]
        entries.append(_entry(f"pair_{style}_{number:04d}", pair, _about_two(first, second, rng)))
    for number in range(CONVERSATIONS["quarters"]):
        count = rng.randint(2, 4)
        chosen = deck.deal_several(count, lambda _: True)
        places = sorted(rng.sample(range(4), count))
        quarters: list[tuple[Concept, str] | None] = [None] * 4
        for place, concept in zip(places, chosen, strict=True):
            quarters[place] = (concept, style)
        image = keep(f"quarters_{number:04d}", encode(composed(quarters, SIDE, rng)))
        turns = _about_quarters(dict(zip(places, chosen, strict=True)), rng)
        entries.append(_entry(f"quarters_{style}_{number:04d}", [image], turns))
    for number in range(CONVERSATIONS["missing"]):
        whole, rest, gone = missing(style, deck, rng)
        pair = [
            keep(f"missing_{number:04d}_{part}", encode(picture))
            for part, picture in (("whole", whole), ("rest", rest))
        ]
        turns = [("Which picture of the first image is missing in the second?", gone.name)]
        entries.append(_entry(f"missing_{style}_{number:04d}", pair, turns, is_short=True))
    return entries, images


def _entry(
    name: str, images: list[str], turns: list[tuple[str, str]], *, is_short: bool = False
) -> Entry:
    spoken = []
    for number, (question, answer) in enumerate(turns):
        shown = "<image>\n" * len(images) if number == 0 else ""
        asked = f"{question}{SHORT}" if is_short else question
        spoken.append({"from": "human", "value": f"{shown}{asked}"})
        spoken.append({"from": "gpt", "value": answer})
    return {"id": name, "image": images if len(images) > 1 else images[0], "conversations": spoken}


def _about_one(concept: Concept, style: str, rng: random.Random) -> list[tuple[str, str]]:
    """Three or four exchanges: in words or in sentences throughout."""
    colour = colours(concept, style)[0]
    name, group = with_article(concept.name), with_article(concept.group)
    other = rng.choice([g for g in GROUPS if g != concept.group])
    kind = f"{with_article(concept.kind)}, {group}" if concept.kind else group
    forms = rng.choice(("What is this?", "What do you see?", "What does the picture show?"))
    turns = [(forms, concept.name, f"This is {name}.")]
    turns.append(("What kind of thing is it?", concept.kind or concept.group, f"It is {kind}."))
    if colour:
        turns.append(("What colour is it?", colour, f"It is {colour}."))
    if rng.random() < 0.5:
        turns.append((f"Is it {group}?", "yes", f"Yes, it is {group}."))
    else:
        turns.append((f"Is it {with_article(other)}?", "no", f"No, it is {group}."))
    if rng.random() < 0.5:
        rng.shuffle(turns)
    if rng.random() < 0.5:
        return [(f"{question}{SHORT}", short) for question, short, _ in turns]
    return [(question, sentence) for question, _, sentence in turns]


def _about_two(first: Concept, second: Concept, rng: random.Random) -> list[tuple[str, str]]:
    asked, other, which = (
        (first, second, "first") if rng.random() < 0.5 else (second, first, "second")
    )
    return [
        (f"Which one is {with_article(asked.group)}, the first or the second?", f"The {which}."),
        ("What is it?", f"It is {with_article(asked.name)}."),
        ("And the other one?", f"The other one is {with_article(other.name)}."),
    ]


def _about_quarters(shown: dict[int, Concept], rng: random.Random) -> list[tuple[str, str]]:
    place = rng.choice(list(shown))
    turns = [
        ("How many pictures are there?", f"There are {NUM_WORDS[len(shown)]}."),
        (f"What is at the {QUARTERS[place]}?", f"That is {with_article(shown[place].name)}."),
    ]
    sought = rng.choice(list(shown))
    turns.append((f"Where is the {shown[sought].name}?", f"It is at the {QUARTERS[sought]}."))
    groups = [concept.group for concept in shown.values()]
    alone = [concept for concept in shown.values() if groups.count(concept.group) == 1]
    if alone:
        one = rng.choice(alone)
        turns.append((f"Which of them is {with_article(one.group)}?", f"{_the(one)} is."))
    return turns


def _the(concept: Concept) -> str:
    phrase = with_article(concept.name)
    return f"The {phrase.removeprefix('a ').removeprefix('an ').removeprefix('the ')}"
