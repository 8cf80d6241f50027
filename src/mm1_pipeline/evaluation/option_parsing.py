"""Which option, or which of yes and no, an answer in free words names.

Nothing is guessed: an answer that names no option, or several, is wrong. (Some official scripts
draw an option at random instead, which adds chance to the score.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mm1_pipeline.evaluation.formats.base import letter

_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,]?")
_LEADING = re.compile(r"[(\[]?([A-Z])(?:[)\]][.:,]?|[.:,])(?=\s|$)")
_ANNOUNCED = re.compile(r"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(\[]?([A-Z])\b(?!')")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_WORD = re.compile(r"[^\W_]+")


def parse_option(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer names; empty if it names none, or several.

    In this order: a letter alone (`b`, `(B).`), a letter that heads the answer (`B. a cat`), an
    announced one (`The answer is B`), one in brackets, the text of an option, the only option
    whose text is in the answer.
    """
    text = answer.strip()
    letters = [letter(index) for index in range(len(options))]
    if (alone := _ALONE.fullmatch(text)) and alone[1].upper() in letters:
        return alone[1].upper()
    if (leading := _LEADING.match(text)) and leading[1] in letters:
        return leading[1]
    for pattern in (_ANNOUNCED, _BRACKETED):
        found = {name for name in pattern.findall(text) if name in letters}
        if len(found) == 1:
            return found.pop()
        if found:
            return ""
    return _option_by_text(text, options)


def parse_pope(answer: str) -> str:
    """`no` if the first sentence holds no, not or No; else `yes`.

    Source: POPE's own rule, which leaves no answer open.
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def parse_mme(answer: str) -> str:
    """`yes` or `no` if the answer begins so; else `other`, which is wrong.

    Source: MME's own rule, which looks at the first 4 characters.
    """
    start = answer.lower()[:4]
    return next((name for name in ("yes", "no") if name in start), "other")


def _option_by_text(text: str, options: Sequence[str]) -> str:
    words = _words(text)
    equal = [index for index, option in enumerate(options) if _words(option) == words]
    if len(equal) == 1:
        return letter(equal[0])
    held = [index for index, option in enumerate(options) if _holds(words, _words(option))]
    # Of "cat" and "black cat", the longer one is meant.
    longest = [
        index
        for index in held
        if not any(
            other != index and _holds(_words(options[other]), _words(options[index]))
            for other in held
        )
    ]
    return letter(longest[0]) if len(longest) == 1 else ""


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    return size > 0 and any(
        list(words[start : start + size]) == list(part) for start in range(len(words) - size + 1)
    )
