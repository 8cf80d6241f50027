"""Which texts are kept: length, shape, repetition, language, words that are not wanted.

Source: the quality and repetition rules of Gopher's MassiveText (Rae et al. 2021); MM1 names
"length and quality filters" without saying which.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from mm1_pipeline.config.corpus_rules import TextRules
from mm1_pipeline.corpus.language import identify_language
from mm1_pipeline.ground.rejects import Reason, Rejected

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
"""Gopher's; a text that has none of them is a list or no English."""

_BULLETS = ("•", "‣", "▶", "◦", "▪", "●", "- ", "* ", "– ")
_ELLIPSES = ("...", "…")
_SYMBOLS = re.compile(r"#|\.\.\.|…")
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_REMEMBERED_LISTS = 8


def check_text(text: str, rules: TextRules) -> None:
    """Applies the rules that look at one text alone, the cheapest first.

    Args:
        text: all text of a record; paragraphs are parted by empty lines.
        rules: a rule that is None does not apply.

    Raises:
        Rejected: by the first rule that is broken.
    """
    words = text.split()
    _check_length(words, rules)
    _check_shape(text, words, rules)
    _check_lines(text, rules)
    _check_ngrams(words, rules)
    _check_profanities(text, rules)
    _check_language(text, rules)


def _at_most(found: float, allowed: float | None, reason: Reason, what: str) -> None:
    if allowed is not None and found > allowed:
        raise Rejected(reason, f"found {what} {found:.4g}, expected at most {allowed:g}")


def _at_least(found: float, needed: float | None, reason: Reason, what: str) -> None:
    if needed is not None and found < needed:
        raise Rejected(reason, f"found {what} {found:.4g}, expected at least {needed:g}")


def _check_length(words: list[str], rules: TextRules) -> None:
    _at_least(len(words), rules.min_words, Reason.TOO_FEW_WORDS, "words")
    _at_most(len(words), rules.max_words, Reason.TOO_MANY_WORDS, "words")
    if not words:
        return
    mean = sum(map(len, words)) / len(words)
    _at_least(mean, rules.min_mean_word_length, Reason.WORD_LENGTH, "a mean word length of")
    _at_most(mean, rules.max_mean_word_length, Reason.WORD_LENGTH, "a mean word length of")


def _check_shape(text: str, words: list[str], rules: TextRules) -> None:
    if not words:
        return
    if rules.max_symbols_per_word is not None:
        symbols = len(_SYMBOLS.findall(text)) / len(words)
        _at_most(symbols, rules.max_symbols_per_word, Reason.TOO_MANY_SYMBOLS, "symbols per word")
    if rules.min_alphabetic_words is not None:
        # Most words start with a letter, and it is quickly seen.
        with_letters = sum(w[0].isalpha() or any(map(str.isalpha, w)) for w in words)
        share = with_letters / len(words)
        needed = rules.min_alphabetic_words
        _at_least(share, needed, Reason.TOO_FEW_LETTERS, "a share of words with letters of")
    if rules.min_stop_words:
        different = set(text.lower().split())
        found = len(STOP_WORDS.intersection(word.strip(",.;:") for word in different))
        _at_least(found, rules.min_stop_words, Reason.TOO_FEW_STOP_WORDS, "stop words")


def _check_lines(text: str, rules: TextRules) -> None:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    what = "a share of lines with bullets of"
    _at_most(bullets, rules.max_bullet_lines, Reason.TOO_MANY_BULLETS, what)
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines) / len(lines)
    what = "a share of lines with ellipses of"
    _at_most(ellipses, rules.max_ellipsis_lines, Reason.TOO_MANY_ELLIPSES, what)
    paragraphs = [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()]
    for name, parts, allowed, allowed_characters in (
        ("lines", lines, rules.max_repeated_lines, rules.max_repeated_line_characters),
        (
            "paragraphs",
            paragraphs,
            rules.max_repeated_paragraphs,
            rules.max_repeated_paragraph_characters,
        ),
    ):
        share, share_of_characters = _repeated(parts)
        _at_most(share, allowed, Reason.REPEATED_LINES, f"a share of repeated {name} of")
        what = f"a share of characters in repeated {name} of"
        _at_most(share_of_characters, allowed_characters, Reason.REPEATED_LINES, what)


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Shares of the parts, and of their characters, that repeat an earlier part."""
    repeated = len(parts) - len(set(parts))
    if not repeated:
        return 0.0, 0.0
    characters = sum(map(len, parts))
    return repeated / len(parts), (characters - sum(map(len, set(parts)))) / characters


def _check_ngrams(words: list[str], rules: TextRules) -> None:
    top = rules.max_top_ngram_characters or {}
    repeated = rules.max_repeated_ngram_characters or {}
    if not (top or repeated) or not words:
        return
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.concatenate(([0], np.cumsum(lengths)))
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(w, len(numbers)) for w in words), np.uint64, len(words))
    hashes = ids
    places = np.arange(len(words))
    for size in range(1, min(max(*top, *repeated, 1), len(words)) + 1):
        # The hash of an n-gram is made of the hash of its first n-1 words and the last one.
        hashes = ids if size == 1 else hashes[:-1] * _MULTIPLIER + ids[size - 1 :]
        # Where the first n-1 words of an n-gram occur once, the n-gram does not repeat either.
        first, counts, later = _repetitions(hashes, places[places < len(hashes)])
        if not len(first):
            return
        if size in top:
            # The n-gram that covers most; once is no repetition.
            characters = ((ends[first + size] - ends[first]) * counts).max()
            what = f"a share of characters in the commonest {size}-gram of"
            _at_most(float(characters / ends[-1]), top[size], Reason.REPEATED_NGRAMS, what)
        if size in repeated:
            share = _covered(later, size, lengths) / ends[-1]
            what = f"a share of characters in repeated {size}-grams of"
            _at_most(float(share), repeated[size], Reason.REPEATED_NGRAMS, what)
        places = np.concatenate((first, later))


def _repetitions(
    hashes: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where n-grams that occur more than once start.

    Args:
        hashes: of the n-grams of a text, by their place.
        places: to look at, in any order.

    Returns:
        The first place of each such n-gram, how often it occurs, and all of its later places.
    """
    places = np.sort(places)
    order = np.argsort(hashes[places], kind="stable")
    places = places[order]
    ordered = hashes[places]
    same = ordered[1:] == ordered[:-1]
    is_later = np.concatenate(([False], same))
    is_first = np.concatenate((same, [False])) & ~is_later
    starts = np.flatnonzero(is_first)
    repeats = np.flatnonzero(is_later)
    counts = np.diff(np.searchsorted(repeats, np.append(starts, len(places)))) + 1
    return places[starts], counts, places[repeats]


def _covered(places: np.ndarray, size: int, lengths: np.ndarray) -> int:
    """Characters of the words that n-grams at some places cover, each counted once."""
    changes = np.zeros(len(lengths) + 1, np.int64)
    changes[places] += 1
    changes[places + size] -= 1
    return lengths[np.cumsum(changes[:-1]) > 0].sum()


def _check_profanities(text: str, rules: TextRules) -> None:
    if rules.profanity_list is None:
        return
    single, phrases = read_profanities(rules.profanity_list)
    words = _WORD.findall(text.lower())
    counts = Counter(word for word in words if word in single)
    found = counts.total()
    if phrases:
        joined = f" {' '.join(words)} "
        found += sum(joined.count(f" {phrase} ") for phrase in phrases)
    if found > rules.max_profanities:
        # The words themselves stay out of the quarantine.
        raise Rejected(
            Reason.PROFANITY,
            f"found {found} listed words, expected at most {rules.max_profanities}",
        )


@lru_cache(_REMEMBERED_LISTS)
def read_profanities(path: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Reads a list of words and phrases, one a line; lines with `#` are comments.

    Args:
        path: any URL that fsspec opens.

    Returns:
        Single words, and phrases of several words, both in lower case.

    Raises:
        OSError: it cannot be read.
    """
    import fsspec

    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("found a folder or a pipe")
    with fsspec.open(path, "rt", encoding="utf-8") as file:
        lines: Iterable[str] = file.read().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    entries = {" ".join(_WORD.findall(line.lower())) for line in lines if line[:1] != "#"} - {""}
    phrases = sorted(entry for entry in entries if " " in entry)
    return frozenset(entries.difference(phrases)), tuple(phrases)


def _check_language(text: str, rules: TextRules) -> None:
    if not rules.languages or not text.strip():
        return
    language, confidence = identify_language(text)
    if language not in rules.languages and confidence >= rules.language_confidence:
        raise Rejected(
            Reason.LANGUAGE,
            f"found {language} ({confidence:.2f}), expected {', '.join(rules.languages)}",
        )
