"""Which language a text is in, as py3langid tells it, in a fraction of its time."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np

_CHARACTERS_LOOKED_AT = 2_000
"""Enough to be sure of any text; the rest of a long page would only take time."""
_LONG_BYTES = 300
"""From which on looking at all places of a text at once is faster than one after the other."""


def identify_language(text: str) -> tuple[str, float]:
    """The likeliest language of a text and how sure that is, 0 to 1.

    py3langid carries its model in the package: a naive Bayes classifier over byte n-grams of 97
    languages. It is seldom sure of a text of three words.

    Args:
        text: of which the start is looked at.

    Returns:
        Code of the language (ISO 639-1 where it has one), and the probability that it has among
        those the model knows. Whether that is sure enough is the caller's question: the rule and
        its threshold stand in `text_rules`.
    """
    language, confidence = _identifier().classify(text[:_CHARACTERS_LOOKED_AT])
    return str(language), float(confidence)


class NgramAutomaton:
    """Counts the n-grams of a long text at all of its places at once.

    py3langid walks through a text byte by byte with an automaton whose state is the longest known
    beginning of an n-gram that the text read so far ends with. So the state at a place follows
    from the few bytes before it, nearly always: every place is stepped on from a guess, and again
    where the state before it has changed, until none changes. That is the walk, whatever the
    guess was.

    Args:
        transitions: uint[rows * 256], the next state by row and byte.
        rows: uint[num_states], the row of every state.
        output: int[num_states], the n-gram that is complete in a state, or -1.
    """

    def __init__(self, transitions: np.ndarray, rows: np.ndarray, output: np.ndarray) -> None:
        self._transitions = transitions
        self._starts = rows.astype(np.int32) << 8
        self._output = output

    def count(self, text: bytes) -> Counter[int]:
        """How often every n-gram occurs, in the order in which they occur first."""
        values = np.frombuffer(text, np.uint8).astype(np.int32)
        # The first guess: that nothing was read before the place.
        states = self._transitions[self._starts[0] + values]
        changed = np.arange(len(values))
        while len(changed):
            # While most places change, all are stepped on: that is faster than to pick them.
            if 2 * len(changed) > len(values):
                stepped = self._transitions[self._starts[states[:-1]] + values[1:]]
                changed = np.flatnonzero(stepped != states[1:]) + 1
                states[1:] = stepped
                continue
            places = changed[changed < len(values) - 1] + 1
            stepped = self._transitions[self._starts[states[places - 1]] + values[places]]
            different = stepped != states[places]
            states[places] = stepped
            changed = places[different]
        found = self._output[states]
        return Counter(found[found >= 0].tolist())


@lru_cache(1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    class FasterIdentifier(LanguageIdentifier):
        """Walks through long texts with `NgramAutomaton`; everything else is the library's."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._automaton = NgramAutomaton(
                np.asarray(self.tk_nextmove), np.asarray(self.tk_row), np.asarray(self.tk_output)
            )
            self.nb_ptc = self.nb_ptc.astype(np.float32)  # else converted for every text

        def _raw_score(self, text: bytes) -> np.ndarray:
            if len(text) < _LONG_BYTES:
                return super()._raw_score(text)
            visits = self._automaton.count(text)
            return self._sparse_score(visits, self.nb_ptc) if visits else super()._raw_score(text)

    return FasterIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
