"""Words of captions by Stanford's own PTBTokenizer, which published CIDEr is counted on.

It is a Java program that comes with pycocoevalcap. Where Java is missing, `caption_tokens` follows
the same rules; every number says which of both made it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mm1_pipeline.config.evaluation import CaptionWords
from mm1_pipeline.evaluation.caption_tokens import CAPTION_TOKENIZER, caption_tokens

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
