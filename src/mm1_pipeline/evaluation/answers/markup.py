"""What models write around an answer: Markdown, quotes, tags, LaTeX, full-width characters."""

from __future__ import annotations

import re
import unicodedata

_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf|tt|bb|cal)?|mbox|operatorname|bm|"
    r"boldsymbol)\s*\{([^{}]*)\}"
)
_MAX_NESTED = 4
"""Fonts inside of fonts."""
_BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER_TAG = re.compile(
    r"<\s*((?:final_?)?answer|choice|option)\s*>(.*?)(?:<\s*/\s*\1\s*>|$)",
    re.DOTALL | re.IGNORECASE,
)
_DOUBLE_BRACKETS = re.compile(r"\[\[([^\[\]]+)\]\]")
_BREAK = re.compile(r"<\s*/?\s*(?:br|p|div|li|tr|h\d)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][\w-]*(?:\s[^<>\n]*)?/?>|<\|[^<>|]*\|>")
_MATH = re.compile(r"\\[()\[\]]|\$+|\\(?:left|right|displaystyle|quad|qquad)\b|\\[,;:! ]")
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}\s+|>\s*|[-*+•]\s+)+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)[*_`~]+|[*_`~]+(?!\w)")
_INNER_EMPHASIS = re.compile(r"\*{2,}|`+")
_APOSTROPHES = re.compile(r"(?<!\w)'+|'+(?!\w)")
_LIKE = str.maketrans(
    {
        **dict.fromkeys('“”„‟«»「」『』《》"', ""),
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
        "。": ".",
        "、": ",",
        "−": "-",
    }
)


def plain_text(text: str) -> str:
    """A text without the marks around its words.

    What stands before `</think>` is no part of the answer; full-width characters become ordinary
    ones (Unicode's NFKC); lines stay.
    """
    plain = _unboxed(text)
    plain = _BOX.sub(r" \1 ", plain)
    plain = _TAG.sub("", _BREAK.sub("\n", plain))
    plain = _LINE_MARK.sub("", _MATH.sub("", plain))
    plain = _INNER_EMPHASIS.sub(" ", _EMPHASIS.sub("", plain))
    return _APOSTROPHES.sub("", plain.translate(_LIKE))


def marked_answers(text: str) -> list[str]:
    r"""What a text marks as its answers, in order: in `\boxed{}`, `<answer>`, `[[ ]]`."""
    plain = _unboxed(text)
    found = [
        (match.start(), match[match.re.groups])
        for pattern in (_BOX, _ANSWER_TAG, _DOUBLE_BRACKETS)
        for match in pattern.finditer(plain)
    ]
    return [content for _, content in sorted(found, key=lambda mark: mark[0])]


def _unboxed(text: str) -> str:
    """Without thoughts and fonts; marks of answers stay."""
    plain = unicodedata.normalize("NFKC", _THOUGHT.sub("", text))
    for _ in range(_MAX_NESTED):
        plain = _FONT.sub(r"\1", plain)
    return plain
