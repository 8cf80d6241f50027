"""Text benchmarks as pairs of context and continuation, worded as lm-evaluation-harness does."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_pipeline.config.text_tasks import TextFormat
from mm1_pipeline.evaluation.formats.base import (
    RawItem,
    letter,
    parse_keyed,
    read_json_lines,
    read_table,
    read_text,
    text_of,
)

logger = logging.getLogger(__name__)

_QUESTION, _ANSWER = "Question: ", "Answer:"
"""Stand before a question, and on the line after it."""

_BRACKETS = re.compile(r"\[.*?\]")
_DESCRIPTION = re.compile(r'\(description (?:"(?P<quoted>[^"]+)"|(?P<plain>[^)]+))\)')
"""A name in WebQuestions. One that holds quotes keeps them all, with their backslashes, as in the
data set that lm-evaluation-harness asks."""


@dataclass(frozen=True, slots=True)
class TextItem:
    """One question of a text benchmark.

    Attributes:
        key: Unique within the task.
        contexts: What stands before each option; one for all where it is the same.
        options: What may follow, without the space before it.
        right: Places of the right options.
        failure: Why it cannot be asked.
        gap: What stands between context and continuation in a solved example.
    """

    key: str
    contexts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    failure: str | None = None
    gap: str = ""

    def pairs(self, shots: str = "") -> list[tuple[str, str]]:
        """Context and continuation of each option, after some solved examples."""
        contexts = self.contexts * (len(self.options) if len(self.contexts) == 1 else 1)
        return [
            (f"{shots}{context}", f" {option}")
            for context, option in zip(contexts, self.options, strict=True)
        ]

    def texts(self) -> tuple[str, ...]:
        """What the benchmark says, without the words of the prompt that stand around it."""
        found: list[str] = []
        for context, continuation in self.pairs():
            lines = context.split("\n")
            found += [line.removeprefix(_QUESTION) for line in lines if line != _ANSWER]
            found.append(continuation.strip())
            if lines[-1] != _ANSWER:
                found.append(context + continuation)
        return tuple(dict.fromkeys(found))

    def solved(self) -> str:
        """The item as an example: context and the first right continuation."""
        context, continuation = self.pairs()[self.right[0]]
        return context + self.gap + continuation


def read_text_items(kind: TextFormat, files: Mapping[str, Path]) -> Iterator[TextItem]:
    """Items of a text benchmark, in the order of its files; a malformed one says why.

    Args:
        kind: How the files are written.
        files: By role.

    Raises:
        ValueError: If a file is missing or is not in the format at all.
    """
    return _READERS[kind](files)


def _lines(
    parse: Callable[[str, Any], TextItem], key: str = ""
) -> Callable[[Mapping[str, Path]], Iterator[TextItem]]:
    """A reader of a file of JSON lines, each of which is a question."""
    return lambda files: _items(_numbered(read_json_lines(files["questions"]), key), parse)


def _items(pairs: Iterable[tuple[str, Any]], parse: Any) -> Iterator[TextItem]:
    found: dict[str, TextItem] = {}

    def keep(key: str, row: Any) -> RawItem:
        found[key] = parse(key, row)
        return RawItem(key=key)

    for raw in parse_keyed(pairs, keep):
        if raw.failure is None:
            yield found.pop(raw.key)
        else:
            yield TextItem(raw.key, failure=raw.failure)


def _numbered(rows: Sequence[Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Rows with their id; with their place where they have none, or one that came before."""
    seen: set[str] = set()
    repeated: list[str] = []
    for number, row in enumerate(rows):
        found = str(row.get(name, number)) if isinstance(row, Mapping) else str(number)
        key = found
        while key in seen:
            key = f"{key} (row {number})"
        if key != found:
            repeated.append(key)
        seen.add(key)
        yield key, row
    if repeated:
        logger.warning(
            "found %d of %d questions under ids that others have; they are asked and scored under "
            "keys of their own, such as %r.",
            len(repeated),
            len(seen),
            repeated[0],
        )


def _asked(question: Any) -> str:
    return f"{_QUESTION}{question}\n{_ANSWER}"


def _arc(key: str, row: Any) -> TextItem:
    choices = row["question"]["choices"]
    labels = [choice["label"] for choice in choices]
    return TextItem(
        key,
        (_asked(row["question"]["stem"]),),
        tuple(str(choice["text"]) for choice in choices),
        (labels.index(row["answerKey"]),),
    )


def _piqa_rows(files: Mapping[str, Path]) -> list[Any]:
    rows = read_json_lines(files["questions"])
    labels = read_text(files["labels"]).split()
    if len(rows) != len(labels):
        raise ValueError(
            f"Found {len(rows)} questions in {files['questions']}, but {len(labels)} labels."
        )
    return [[row, label] for row, label in zip(rows, labels, strict=True)]


def _piqa(key: str, pair: Any) -> TextItem:
    row, label = pair
    options = (_as_it_is(row["sol1"]), _as_it_is(row["sol2"]))
    return TextItem(key, (_asked(row["goal"]),), options, (_place(label, options),))


def _lambada(key: str, row: Any) -> TextItem:
    context, _, last = _as_it_is(row["text"]).rpartition(" ")
    if not context and not last:
        raise ValueError("found no word in the text")
    # lm-evaluation-harness puts a second space before the last word of a solved example.
    return TextItem(key, (context,), (last,), (0,), gap=" ")


def _winogrande(key: str, row: Any) -> TextItem:
    before, gap, after = row["sentence"].partition("_")
    if not gap:
        raise ValueError("found no gap `_` in the sentence")
    options = (str(row["option1"]), str(row["option2"]))
    return TextItem(
        key,
        tuple(before + option for option in options),
        (after.strip(),) * len(options),
        (_place(int(row["answer"]) - 1, options),),
    )


def _hellaswag(key: str, row: Any) -> TextItem:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    options = tuple(_wikihow(ending) for ending in row["endings"])
    return TextItem(key, (_wikihow(context),), options, (_place(row["label"], options),))


def _wikihow(text: str) -> str:
    """Without the marks that its WikiHow part left."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def _sciq(key: str, row: Any) -> TextItem:
    options = [row[f"distractor{number}"] for number in (1, 2, 3)]
    support = _as_it_is(row["support"]).lstrip()
    return TextItem(
        key,
        (f"{support}\n{_asked(row['question'])}",),
        (*map(str, options), str(row["correct_answer"])),
        (3,),
    )


def _triviaqa(key: str, row: Any) -> TextItem:
    aliases = tuple(text_of(alias) for alias in row["Answer"]["Aliases"])
    if not aliases:
        raise ValueError("found no alias of the answer")
    context = _asked(f"{text_of(row['Question'])}?")
    return TextItem(key, (context,), aliases, tuple(range(len(aliases))))


def _webqs(key: str, row: Any) -> TextItem:
    """Names that begin with another one are left out: that one is enough to be right."""
    found = _DESCRIPTION.finditer(row["targetValue"])
    kept: list[str] = []
    for name in sorted(match["quoted"] or match["plain"] for match in found):
        if not (kept and name.startswith(kept[-1])):
            kept.append(name)
    if not kept:
        raise ValueError("found no name in targetValue")
    return TextItem(
        key,
        (_asked(row["utterance"]),),
        tuple(kept),
        tuple(range(len(kept))),
    )


def _as_it_is(value: Any) -> str:
    """A text with its outer spaces, which are part of what is asked."""
    if not isinstance(value, str):
        raise TypeError(f"found {type(value).__name__}, expected text")
    return value


def _place(label: Any, options: tuple[str, ...]) -> int:
    index = int(label)
    if not 0 <= index < len(options):
        raise ValueError(f"found {letter(index) if index >= 0 else index} as the right option")
    return index


def _read_piqa(files: Mapping[str, Path]) -> Iterator[TextItem]:
    return _items(_numbered(_piqa_rows(files)), _piqa)


def _read_triviaqa(files: Mapping[str, Path]) -> Iterator[TextItem]:
    return _items(_numbered(read_table(files["questions"], "Data"), "QuestionId"), _triviaqa)


_READERS: dict[TextFormat, Callable[[Mapping[str, Path]], Iterator[TextItem]]] = {
    TextFormat.ARC: _lines(_arc, "id"),
    TextFormat.PIQA: _read_piqa,
    TextFormat.LAMBADA: _lines(_lambada),
    TextFormat.WINOGRANDE: _lines(_winogrande, "qID"),
    TextFormat.HELLASWAG: _lines(_hellaswag),
    TextFormat.SCIQ: _lines(_sciq),
    TextFormat.TRIVIAQA: _read_triviaqa,
    TextFormat.WEBQS: _lines(_webqs),
}
assert _READERS.keys() == set(TextFormat), "every text format has a reader"
