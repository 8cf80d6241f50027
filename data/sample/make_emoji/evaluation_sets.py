"""What is asked: the held-out style, of concepts that training shows and of some that it does not.

captions_*      COCO captions; the name is the reference
levels_*        VQAv2: "What is this?"; the ten answers give credit for the level reached
facts_*         VQAv2: colours, groups, counts
few_shot.json   LLaVA: the question says nothing, so only shots tell what is asked
"""

from __future__ import annotations

import random
from typing import Any

from concepts import HELD_OUT_STYLE, Concept, describe, hash_of, with_article
from pictures import OPPOSITES, SIDE, colours, encode, single
from training_sets import GROUPS, NUM_WORDS, Deck, counted

NUM_SEEN = 400
"""Held-out pictures of concepts that training shows in other styles."""
NUM_COUNTS = 200
MAX_OF_ANSWER = 25
"""Items of a few-shot task with one answer, so that no constant answer does well."""
NUM_ANSWERS = 10
LEVEL_ANSWERS = (1, 2)
"""How many of the ten say the group, and how many the kind; the others say the name."""
FEW_SHOT_GROUPS = ("face", "person", "animal", "food", "vehicle", "place", "clothing", "symbol")
FIRST_COUNT = 900_000
"""Image numbers from here on are composed pictures."""


def evaluation(concepts: list[Concept]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """JSON files and images, by name."""
    able = [c for c in concepts if HELD_OUT_STYLE in c.drawings and c.styles]
    ordered = sorted(able, key=lambda concept: hash_of("evaluation", concept.code_points))
    shown = [c for c in ordered if c.is_seen][:NUM_SEEN]
    unseen = [c for c in ordered if not c.is_seen]
    numbers = {c.code_points: number for number, c in enumerate(concepts)}

    def number_of(concept: Concept) -> int:
        return numbers[concept.code_points]

    images = {_file(number_of(c)): encode(single(c, HELD_OUT_STYLE)) for c in (*shown, *unseen)}
    rng = random.Random("evaluation")
    deck = Deck(shown, rng)
    counts: dict[int, int] = {}
    for number in range(FIRST_COUNT, FIRST_COUNT + NUM_COUNTS):
        picture, counts[number] = counted(HELD_OUT_STYLE, deck, rng)
        images[_file(number)] = encode(picture)
    files: dict[str, Any] = {}
    for name, chosen in (("seen", shown), ("unseen", unseen)):
        ids = [(number_of(concept), concept) for concept in chosen]
        files[f"captions_{name}/captions.json"] = _coco(ids)
        levels = [(i, "What is this?", level_answers(c)) for i, c in ids]
        files |= _vqa(f"levels_{name}", levels)
    asked = [(number_of(c), q, [a] * NUM_ANSWERS) for c in shown for q, a in _facts(c, rng)]
    asked += [(i, "How many pictures are there?", [NUM_WORDS[n]] * 10) for i, n in counts.items()]
    files |= _vqa("facts", asked)
    files["few_shot/few_shot.json"] = [
        *_few_shot("group", [(number_of(c), c.group) for c in shown if c.group in FEW_SHOT_GROUPS]),
        *_few_shot("opposite", _opposites([(number_of(c), c) for c in shown])),
        *_few_shot("count", [(number, NUM_WORDS[count]) for number, count in counts.items()], 50),
    ]
    files["levels.json"] = {
        "pictures": {_file(number_of(c)): describe(c) for c in (*shown, *unseen)},
        "phrases": {c.name: list(c.levels) for c in concepts if c.is_seen},
    }
    return files, images


def level_answers(concept: Concept) -> list[str]:
    """Ten answers: the general ones by few, so that VQAv2's rule credits 30, 60 and 100.

    An answer that one of ten gives scores 30, two 60, four or more 100.
    """
    general = [
        level
        for level, number in zip(concept.levels[:-1], LEVEL_ANSWERS, strict=False)
        for _ in range(number)
    ]
    return [*[concept.name] * (NUM_ANSWERS - len(general)), *reversed(general)]


def _facts(concept: Concept, rng: random.Random) -> list[tuple[str, str]]:
    """Two questions about the group, one `yes` and one `no`, and the colour where it is clear."""
    other = rng.choice([group for group in GROUPS if group != concept.group])
    found = [(f"Is this {with_article(group)}?", answer) for group, answer in
             ((concept.group, "yes"), (other, "no"))]  # fmt: skip
    colour, second = colours(concept, HELD_OUT_STYLE)
    if colour and not second:
        found.append(("What colour is it?", colour))
    return found


def _opposites(shown: list[tuple[int, Concept]]) -> list[tuple[int, str]]:
    found = [(number, colours(concept, HELD_OUT_STYLE)) for number, concept in shown]
    return [(i, OPPOSITES[main]) for i, (main, second) in found if main in OPPOSITES and not second]


def _few_shot(
    task: str, items: list[tuple[int, str]], most: int = MAX_OF_ANSWER
) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{task}_{number:06d}",
            "image": _file(number),
            "conversations": [
                {"from": "human", "value": "<image>\nAnswer:"},
                {"from": "gpt", "value": answer},
            ],
        }
        for place, (number, answer) in enumerate(items)
        if [one for _, one in items[:place]].count(answer) < most
    ]


def _file(number: int) -> str:
    return f"{number:06d}.webp"


def _coco(shown: list[tuple[int, Concept]]) -> dict[str, Any]:
    return {
        "info": {"description": "held-out style: captions"},
        "licenses": [{"id": 1, "name": "MIT"}],
        "images": [
            {"id": i, "file_name": _file(i), "width": SIDE, "height": SIDE, "license": 1}
            for i, _ in shown
        ],
        "annotations": [
            {"id": i, "image_id": i, "caption": with_article(concept.name)} for i, concept in shown
        ],
    }


def _vqa(name: str, asked: list[tuple[int, str, list[str]]]) -> dict[str, Any]:
    questions, annotations = [], []
    for number, (image, question, answers) in enumerate(asked):
        ids = {"question_id": number, "image_id": image}
        questions.append({**ids, "question": question})
        given = [
            {"answer": answer, "answer_id": place, "answer_confidence": "yes"}
            for place, answer in enumerate(answers, start=1)
        ]
        best = max(answers, key=answers.count)
        annotations.append({**ids, "multiple_choice_answer": best, "answers": given})
    return {
        f"{name}/questions.json": {"questions": questions},
        f"{name}/annotations.json": {"annotations": annotations},
    }
