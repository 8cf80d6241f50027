"""Which captions are kept: alt-text is often a file's name, an address or nothing at all."""

from __future__ import annotations

import re
from functools import lru_cache

from mm1_pipeline.config.corpus_rules import CaptionRules
from mm1_pipeline.ground.rejects import Reason, Rejected

_MIN_WORDS_TO_REPEAT = 6
_LETTERS = re.compile(r"[^\W\d_]+")


def check_caption(caption: str, rules: CaptionRules) -> None:
    """Applies the rules for captions, the cheapest first.

    Args:
        caption: as it was found.
        rules: a rule that is None does not apply.

    Raises:
        Rejected: by the first rule that is broken.
    """
    text = " ".join(caption.split())
    if rules.max_characters is not None and len(text) > rules.max_characters:
        found = f"found {len(text)} characters, expected at most {rules.max_characters}"
        raise Rejected(Reason.TOO_MANY_CHARACTERS, found)
    _check_noise(text, rules)
    if rules.min_characters is not None and len(text) < rules.min_characters:
        found = f"found {len(text)} characters, expected {rules.min_characters} or more"
        raise Rejected(Reason.TOO_FEW_CHARACTERS, found)
    words = text.split()
    if rules.min_words is not None and len(words) < rules.min_words:
        found = f"found {len(words)} words, expected {rules.min_words} or more"
        raise Rejected(Reason.TOO_FEW_WORDS, found)
    if rules.max_repeated_words is not None and len(words) >= _MIN_WORDS_TO_REPEAT:
        share = 1 - len({word.lower() for word in words}) / len(words)
        if share > rules.max_repeated_words:
            found = f"found a share of repeated words of {share:.3g}"
            allowed = f"expected at most {rules.max_repeated_words:g}"
            raise Rejected(Reason.REPEATED_NGRAMS, f"{found}, {allowed}")


def _check_noise(text: str, rules: CaptionRules) -> None:
    if _whole(rules.file_name, text):
        raise Rejected(Reason.CAPTION_FILE_NAME, f"found {text[:80]!r}")
    if _whole(rules.camera_default, text):
        raise Rejected(Reason.CAPTION_CAMERA_DEFAULT, f"found {text[:80]!r}")
    if rules.url and (match := _compiled(rules.url).search(text)):
        raise Rejected(Reason.CAPTION_URL, f"found {match[0][:80]!r}")
    if rules.boilerplate:
        rest = _boilerplate(rules.boilerplate).sub(" ", text)
        if not _LETTERS.search(rest):
            raise Rejected(Reason.CAPTION_BOILERPLATE, f"found {text[:80]!r}")


def _whole(pattern: str | None, text: str) -> bool:
    return bool(pattern) and _compiled(pattern or "").fullmatch(text) is not None


@lru_cache(64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@lru_cache(64)
def _boilerplate(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases as whole words, the longest first."""
    ordered = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    joined = "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in ordered)
    return re.compile(rf"\b(?:{joined})\b", re.IGNORECASE)
