"""When a model's answer is none, and what is said instead.

A small model that is asked what it never learnt goes on all the same: it falls into a loop, or says
what it learnt last. Two rules tell of that, both of what can be seen and not of taste:

- an answer that ends in the same few tokens again and again is a loop: it is stopped, not shown;
- a message most of whose words no question of the fine-tuning holds is of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

_LONGEST_PERIOD = 16
"""Tokens that are said again."""
_TIMES, _FEWEST_TOKENS = 4, 12
"""A loop is something said four times over, in twelve tokens at least: `1111`, and a list of three
things that begin alike, are none. Our choice."""
_KNOWN_SHARE = 0.5
"""Of a message's words that are known, below which it is of another kind. Our choice."""
_WORD = re.compile(r"[^\W\d_]+")


def loop_length(tokens: Sequence[int]) -> int:
    """How many tokens at the end say the same again and again, 0 where there is no loop.

    Args:
        tokens: Of the answer up to now.
    """
    for period in range(1, _LONGEST_PERIOD + 1):
        needed = max(_TIMES * period, _FEWEST_TOKENS)
        if len(tokens) < needed:
            break
        length = period
        while length < len(tokens) and tokens[-1 - length] == tokens[-1 - length + period]:
            length += 1
        if length >= needed:
            return length
    return 0


def words_of(text: str) -> frozenset[str]:
    """The words of a text, in lower case; numbers are none."""
    return frozenset(word.lower() for word in _WORD.findall(text))


def is_of_another_kind(text: str, known: Set[str]) -> bool:
    """Whether a message is nothing like what people said in training.

    Args:
        text: The message.
        known: Words of the training; none where they are not known, and nothing is of another kind.
    """
    words = words_of(text)
    if not known or not words:
        return False
    return len(words & known) < _KNOWN_SHARE * len(words)
