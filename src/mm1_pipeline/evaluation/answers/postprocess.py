"""From raw model output to the answer that is scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mm1_pipeline.config.evaluation import AnswerForm, Metric

POSTPROCESS = (
    "stop-strings-1;captions=whitespace-1;vqa=vqa-v2-2,textvqa-1,vizwiz-1;exact=gqa-2;"
    "relaxed=chartqa-2;anls=docvqa-2;options=named-2;open=mmmu-2;yes-no=pope-2,mme-2"
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

_STRAIGHT = frozenset({"aint", "arent", "cant", "couldve", "couldnt", "weve", "wheres", "whove"})
"""Contractions that VizWiz writes with a straight apostrophe."""
_STRAIGHT_KEYS = frozenset({"couldn'tve", "hadn'tve"})


def _typographic(text: str) -> str:
    return text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")


VIZWIZ_CONTRACTIONS = {
    wrong if wrong in _STRAIGHT_KEYS else _typographic(wrong): right
    if wrong in _STRAIGHT
    else _typographic(right)
    for wrong, right in CONTRACTIONS.items()
}
"""As `CONTRACTIONS`, with the apostrophes of VizWiz's evaluation: typographic ones in most words,
also in those it looks for."""


def has_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether a text holds one of the strings at which an answer ends."""
    return any(string in text for string in stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings at which an answer ends."""
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=None)]


def process_output(
    text: str,
    metric: Metric,
    stop: Sequence[str],
    form: AnswerForm = AnswerForm.AS_WRITTEN,
) -> str:
    """The answer inside a raw output, as the metric gets it: cut at the first stop string.

    Metrics of answers normalise by themselves, each as its benchmark does.

    Source: MM1, Evaluation (captions stop at a newline, answers also at a full stop and a
    comma; unconfirmed).

    Args:
        text: What the model wrote after the prompt.
        metric: How the answer will be scored.
        stop: Strings at which an answer ends.
        form: Whether the answer is rewritten before it is scored and handed in.

    Returns:
        A caption with single spaces, or an answer without outer spaces.
    """
    answer = cut_at_stop(text, stop)
    if form == AnswerForm.EVALAI:
        return normalize_evalai_answer(answer)
    return " ".join(answer.split()) if metric == Metric.CIDER else answer.strip()


@lru_cache(maxsize=1 << 16)
def normalize_vqa_answer(text: str) -> str:
    """Writes an answer as VQAv2's scorer compares it.

    Lower case; punctuation out; number words as digits; no articles; contractions with their
    apostrophe. A mark becomes nothing where the text has it next to a space, or has a digit on
    both sides of a comma (1,000); otherwise it becomes a space. A full stop stays only before
    a digit.

    Source: the rules of the official VQA evaluation, including that it strips at most 32 full
    stops.
    """
    return _normalized(text, CONTRACTIONS)


@lru_cache(maxsize=1 << 16)
def normalize_evalai_answer(text: str) -> str:
    """Writes an answer as TextVQA's scorer compares it: commas, question marks, `'s`, then VQAv2's.

    Commas and question marks go without a space in their place; `'s` becomes a word.

    Source: the answer processor of Pythia, MMF and LLaVA, after EvalAI's.
    """
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _normalized(words, CONTRACTIONS)


@lru_cache(maxsize=1 << 16)
def normalize_vizwiz_answer(text: str) -> str:
    """Writes an answer as VizWiz's scorer compares it: as VQAv2's, with its own apostrophes."""
    return _normalized(text, VIZWIZ_CONTRACTIONS)


def _normalized(text: str, contractions: Mapping[str, str]) -> str:
    words = _drop_punctuation(one_line(text)).lower().split()
    digits = (DIGITS.get(word, word) for word in words)
    return " ".join(contractions.get(word, word) for word in digits if word not in ARTICLES)


def one_line(text: str) -> str:
    """The text with spaces for line ends and tabs, and without outer spaces."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _drop_punctuation(text: str) -> str:
    in_number = re.search(r"\d,\d", text) is not None
    replacement = {
        ord(mark): "" if in_number or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION
    }
    return re.sub(r"\.(?!\d)", "", text.translate(replacement), count=_MAX_STOPS)
