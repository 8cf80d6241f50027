"""Words of a caption as CIDEr counts them, without Java.

COCO's captions are scored on the words of Stanford's PTBTokenizer. This module follows its
rules for what captions hold: lower case, clitics apart (`do n't`, `dog 's`), marks apart and
then dropped, hyphenated words, numbers and abbreviations whole. Of 5,216 captions of the sample
all but 3 give the same words; markup and file names do not.
"""

from __future__ import annotations

import html
import re

CAPTION_TOKENIZER = "regex-ptb-1"
"""Names the rules in evaluation.json: a number made with others is not comparable."""

DROPPED = frozenset({"'", "''", "`", "``", '"', ".", "?", "!", ",", ":", ";", "-", "--"})
"""Tokens that are no words, as pycocoevalcap drops them; so are dots in any number."""

_STRAIGHT = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": " - ", "—": " - ", "…": "."}
)
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr vs etc no p pp ca inc ltd corp co dept est fig gen gov hon lt "
    "maj rev sen sgt ave blvd jan feb mar apr jun jul aug sep sept oct nov dec"
)
_REWRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}

_PATTERN = r"""
      n't\b                                              # the negation, once split off
    | '(?:s|m|d|re|ve|ll)\b | '\d\ds\b                  # the other clitics; '90s
    | o'clock\b | \b[dl]'(?=\w{3})\w+                   # d'azur
    | \w+@[\w.-]+\w | https?://\S+                       # addresses
    | (?:[^\W\d_]\.){2,}                                # u.s.
    | \b(?:ABBREVIATION)\.(?=\s+\S)                     # mr. smith
    | (?<![\w.,])-?\d+(?:[.,:/]\d+)*(?:-?\w+)*          # 3.5  1,000  10:30  1/2  1990s
    | \w(?:(?!n't\b)\w)*(?:[-/&._]\w(?:(?!n't\b)\w)*)*  # dog  well-known  and/or
    | [.]{2,} | -{2,} | [!?]{2,}                         # runs of one mark
    | \S
"""
_TOKEN = re.compile(_PATTERN.replace("ABBREVIATION", _ABBREVIATIONS.replace(" ", "|")), re.VERBOSE)


def caption_tokens(caption: str) -> list[str]:
    """The words of a caption, lower case and without punctuation."""
    text = html.unescape(caption).translate(_STRAIGHT).lower()
    found: list[str] = _TOKEN.findall(text)
    kept = (token for token in found if token not in DROPPED and token.strip("."))
    return [word for token in kept for word in _REWRITTEN.get(token, token).split()]
