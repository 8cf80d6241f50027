"""Scores of single items: CIDEr for captions, VQA accuracy for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.cider.cider import Cider

from mm1_pipeline.config.evaluation import CaptionWords
from mm1_pipeline.evaluation.answers.postprocess import (
    normalize_evalai_answer,
    normalize_vizwiz_answer,
    normalize_vqa_answer,
    one_line,
)
from mm1_pipeline.evaluation.scoring.caption_words import caption_words

NUM_ANSWERS = 10
"""Human answers to a question of VQAv2, OK-VQA, TextVQA and VizWiz."""


def cider_scores(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    words: CaptionWords = CaptionWords.REGEX,
) -> np.ndarray:
    """CIDEr of every caption, as pycocoevalcap computes it.

    The weights of n-grams come from all references together, so an item's score depends on
    which other items are scored with it.

    Args:
        captions: One caption an item, by item key.
        references: The captions people wrote, by the same keys.
        words: Which tokenizer gives the words.

    Returns:
        float64[len(captions)], in the order of `captions`; 1.0 is printed as 100.

    Raises:
        ValueError: If the keys differ, or an item has no reference.
    """
    if captions.keys() != references.keys():
        raise ValueError(
            f"Found {len(captions)} captions and {len(references)} items with references; CIDEr "
            "needs exactly one caption for every item."
        )
    empty = [key for key, texts in references.items() if not texts]
    if empty:
        raise ValueError(f"Found items without a reference caption: {empty[:5]}.")
    if not captions:
        return np.zeros(0)
    texts = [*captions.values(), *(text for key in captions for text in references[key])]
    tokenized = iter(caption_words(texts, words))
    caption_text = {key: [next(tokenized)] for key in captions}
    reference_text = {key: [next(tokenized) for _ in references[key]] for key in captions}
    _, scores = Cider().compute_score(reference_text, caption_text)
    return np.asarray(scores, dtype=np.float64)


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Agreement of an answer with people, as VQAv2 and OK-VQA count it.

    Answer and answers are normalised where people differ. Where all of them wrote the same, the
    official scorer compares as it stands: `Yes` is wrong where ten people wrote `yes`.

    Source: the official VQA evaluation.

    Args:
        answer: The answer, as the model wrote it.
        human_answers: What ten people answered.

    Returns:
        0..1.
    """
    given, humans = one_line(answer), [one_line(human) for human in human_answers]
    if len(set(humans)) > 1:
        given = normalize_vqa_answer(given)
        humans = [normalize_vqa_answer(human) for human in humans]
    return _agreement(given, humans)


def textvqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Agreement of an answer with people, as TextVQA counts it: both sides always normalised.

    Source: the TextVQA evaluator of Pythia and MMF, which LLaVA has taken over.

    Args:
        answer: The answer, as the model wrote it.
        human_answers: What ten people answered.

    Returns:
        0..1.
    """
    return _agreement(
        normalize_evalai_answer(answer), [normalize_evalai_answer(human) for human in human_answers]
    )


def vizwiz_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Agreement of an answer with people, as VizWiz counts it: only the answer is normalised.

    A person's answer that is not in the normal form, such as `The cat`, can be matched by none.

    Source: VizWiz's evaluation.

    Args:
        answer: The answer, as the model wrote it.
        human_answers: What ten people answered.

    Returns:
        0..1.
    """
    return _agreement(normalize_vizwiz_answer(answer), human_answers)


def _agreement(answer: str, human_answers: Sequence[str]) -> float:
    """Mean over all but one of the people of min(matches / 3, 1)."""
    matches = sum(human == answer for human in human_answers)
    others = len(human_answers) - matches
    agreeing_left_out = min((matches - 1) / 3, 1.0)
    other_left_out = min(matches / 3, 1.0)
    return (matches * agreeing_left_out + others * other_left_out) / len(human_answers)


MIN_SIMILARITY = 0.5
"""Similarity below which ANLS gives nothing. Source: the ANLS metric of ST-VQA and DocVQA."""
RELAXED_TOLERANCE = 0.05
"""Relative error that relaxed accuracy forgives. Source: ChartQA."""


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
