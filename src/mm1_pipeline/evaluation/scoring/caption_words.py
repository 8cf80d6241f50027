"""Words of a caption as CIDEr counts them: by Stanford's PTBTokenizer, or without Java.

Published CIDEr is counted on the words of Stanford's tokenizer, a Java program that comes with
pycocoevalcap. Where Java is missing, `caption_tokens` follows its rules for what captions hold:
lower case, clitics apart (`do n't`, `dog 's`), marks apart and then dropped, hyphenated words,
numbers and abbreviations whole. Of 5,216 captions of the sample all but 3 give the same words;
markup and file names do not. Every number says which of both made it.
"""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mm1_pipeline.config.evaluation import CaptionWords

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


STANFORD_TOKENIZER = "stanford-ptb-3.4.1"
"""Names the tokenizer in evaluation.json."""

_JAR = "stanford-corenlp-3.4.1.jar"
_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
_DROPPED = frozenset(
    {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"}
    | {".", "?", "!", ",", ":", "-", "--", "...", ";"}
)
"""Tokens that pycocoevalcap leaves out. After lower-casing, the brackets' names never match."""
_TIMEOUT_SECONDS = 600


def caption_words(texts: Sequence[str], words: CaptionWords) -> list[str]:
    """The words of each caption, lower case, without punctuation, a space between.

    Raises:
        ValueError: If Stanford's tokenizer is asked for and Java or its file is missing.
    """
    if tokenizer_name(words) == STANFORD_TOKENIZER:
        return _stanford_words(texts)
    return [" ".join(caption_tokens(text)) for text in texts]


def tokenizer_name(words: CaptionWords) -> str:
    """Which tokenizer is taken here: Stanford's, or the one without Java.

    Raises:
        ValueError: If Stanford's is asked for and Java or its file is missing.
    """
    missing = _missing()
    match words:
        case CaptionWords.REGEX:
            return CAPTION_TOKENIZER
        case CaptionWords.AUTO:
            return CAPTION_TOKENIZER if missing else STANFORD_TOKENIZER
        case CaptionWords.STANFORD:
            if missing:
                raise ValueError(
                    f"caption_words: found `stanford`, but {missing}; install a Java runtime, or "
                    "choose `auto` or `regex`."
                )
            return STANFORD_TOKENIZER


def _missing() -> str | None:
    if shutil.which("java") is None:
        return "there is no `java` on the PATH"
    if not _jar().is_file():
        return f"pycocoevalcap has no {_JAR}"
    return None


def _jar() -> Path:
    spec = importlib.util.find_spec("pycocoevalcap.tokenizer")
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders or []), ".")) / _JAR


def _stanford_words(texts: Sequence[str]) -> list[str]:
    lines = [" ".join(text.split()) for text in texts]
    if not lines:
        return []
    finished = subprocess.run(  # noqa: S603 (a fixed command)
        ["java", "-cp", str(_jar()), _CLASS, "-preserveLines", "-lowerCase"],  # noqa: S607
        input="\n".join(lines).encode("utf-8"),
        capture_output=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    found = finished.stdout.decode("utf-8").split("\n")
    if finished.returncode or len(found) < len(lines):
        raise ValueError(
            f"Found {len(found)} lines from Stanford's tokenizer, expected {len(lines)}: "
            f"{finished.stderr.decode('utf-8', 'replace')[-300:]}. Set caption_words: regex."
        )
    kept = found[: len(lines)]
    return [" ".join(word for word in line.split() if word not in _DROPPED) for line in kept]
