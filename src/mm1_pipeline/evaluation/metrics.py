"""Scores of single items: CIDEr for captions, VQA accuracy for answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.cider.cider import Cider

from mm1_pipeline.config.evaluation import CaptionWords
from mm1_pipeline.evaluation.postprocess import (
    normalize_evalai_answer,
    normalize_vizwiz_answer,
    normalize_vqa_answer,
    one_line,
)
from mm1_pipeline.evaluation.stanford_tokens import caption_words

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
