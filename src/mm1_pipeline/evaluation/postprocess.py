"""From raw model output to the answer that is scored."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mm1_pipeline.config.evaluation import Metric

POSTPROCESS = (
    "stop-strings-1;captions=whitespace-1;vqa=vqa-v2-normalization-1;options=named-1;"
    "yes-no=pope-1,mme-1"
)
"""Names these rules in evaluation.json; a change of a rule raises its number."""

ARTICLES = frozenset({"a", "an", "the"})
"""Words that say nothing in a short answer."""

DIGITS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
"""Number words that VQAv2 writes as digits."""

_MAX_STOPS = 32
"""The official script passes a flag where the count of replacements belongs."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTED = {
    "n't": "are could did does do had has have is might must need ought should was were would",
    "'ve": "could might must not should they we what where who would you",
    "'re": "there they what why you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you",
    "": "ain't can't ma'am o'clock shan't 'twas won't y'all y'all'll y'all'd've 'ow's'at",
}
"""Endings and the words that VQAv2's rules know with them."""


def _spellings_without_apostrophe() -> dict[str, str]:
    """Every contraction with one apostrophe left out, and its right spelling."""
    right_spellings = (
        word + ending for ending, words in _CONTRACTED.items() for word in words.split()
    )
    return {
        right[:at] + right[at + 1 :]: right
        for right in right_spellings
        for at, letter in enumerate(right)
        if letter == "'"
    }


CONTRACTIONS = _spellings_without_apostrophe() | {"somebody'd": "somebodyd"}
"""Misspelt contractions and how VQAv2 writes them: `dont` -> `don't`. The last one is a slip of
the official list, and scores depend on it."""


def has_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether a text holds one of the strings at which an answer ends."""
    return any(string in text for string in stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings at which an answer ends."""
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=None)]


def process_output(text: str, metric: Metric, stop: Sequence[str]) -> str:
    """The answer inside a raw output: cut at the first stop string, then cleaned.

    Source: MM1, Evaluation (captions stop at a newline, answers also at a full stop and a
    comma; unconfirmed).

    Args:
        text: What the model wrote after the prompt.
        metric: How the answer will be scored.
        stop: Strings at which an answer ends.

    Returns:
        A normalised VQA answer, or the text with single spaces.
    """
    answer = cut_at_stop(text, stop)
    if metric == Metric.VQA_ACCURACY:
        return normalize_vqa_answer(answer)
    return " ".join(answer.split())


def normalize_vqa_answer(text: str) -> str:
    """Writes an answer as VQAv2's scorer compares it.

    Lower case; punctuation out; number words as digits; no articles; contractions with their
    apostrophe. A mark becomes nothing where the text has it next to a space, or has a digit on
    both sides of a comma (1,000); otherwise it becomes a space. A full stop stays only before
    a digit.

    Source: the rules of the official VQA evaluation, including that it strips at most 32 full
    stops.
    """
    words = _drop_punctuation(" ".join(text.split())).lower().split()
    digits = (DIGITS.get(word, word) for word in words)
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)


def _drop_punctuation(text: str) -> str:
    in_number = re.search(r"\d,\d", text) is not None
    replacement = {
        ord(mark): "" if in_number or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION
    }
    return re.sub(r"\.(?!\d)", "", text.translate(replacement), count=_MAX_STOPS)
