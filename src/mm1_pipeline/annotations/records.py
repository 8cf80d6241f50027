"""What an annotation file says, as typed records, and the fields that they are made of.

The rules that hold for every layout:

- A question or an answer may be a number: tools write `4` for `"4"`. It is the text of it. Truth
  values, nothing, NaN and infinity are no text.
- Blanks around a text are none of it.
- One answer of several that is no text costs its question: to leave it out would change what the
  question's answers say, and a score that needs ten. An empty one among others stays.
- An identifier is a number or a text, and `5` and `"5"` are the same.
- A second entry of an identifier is marked; whoever reads decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, TypeVar

from mm1_pipeline.annotations.json_files import RepeatingObject, all_pairs
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected, storable

_MAX_NAME = 1_000
"""Characters of an identifier above which it is none."""


class ImageCall(Enum):
    """How an annotation calls its image."""

    NAME = auto()
    """By its file name, perhaps with folders."""
    STEM = auto()
    """By its file name without suffix."""
    NUMBER = auto()
    """By the number at the end of its file name: `COCO_val2014_000000000042.jpg` is 42."""
    PAGE = auto()
    """By its file name in a folder that is not always there: DocVQA's `documents/x.png`."""


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image as an annotation calls it; whether there is one, `corpus.annotated_images` says."""

    value: Any
    call: ImageCall = ImageCall.NAME


@dataclass(frozen=True, slots=True)
class Question:
    """One question: free answers, or options of which one is right."""

    text: str
    answers: tuple[str, ...]
    """In the order of the file; none where a test set hides them."""
    choices: tuple[str, ...] = ()
    correct: int | None = None
    chosen: str | None = None
    """The answer that the authors call the commonest."""

    @property
    def commonest(self) -> str:
        """The answer to learn: what the authors chose, else what most people said."""
        return self.chosen or Counter(filter(None, self.answers)).most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Asked:
    """An image and the questions about it that one entry holds."""

    key: str
    image: ImageName
    questions: tuple[Question, ...]
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False
    """Whether an earlier entry has its key."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption."""

    key: str
    identifier: Any
    text: str


@dataclass(frozen=True, slots=True)
class Captioned:
    """An image with all its captions."""

    key: str
    image: ImageName
    captions: tuple[Caption, ...]
    references: tuple[str, ...]
    """What another caption is compared with: the captions, unless the file says others."""
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """Something that is no record, and why."""

    key: str
    why: Rejected
    is_asked: bool = True
    """Whether it would have been a question or an image; else an answer or caption to none."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Something in a file that its format calls no record: not read, but counted."""

    why: Passed
    count: int = 1


Entry = dict[str, Any]
T = TypeVar("T")
Found = Asked | Captioned | RejectedEntry | PassedOver


def parse_entries(
    entries: Iterable[tuple[str, Any]], parse: Callable[[str, Entry], T]
) -> Iterator[T | RejectedEntry]:
    """Parses each entry; whatever is wrong with one costs it alone.

    Args:
        entries: key and content of each.
        parse: gives the record of an entry, and may raise whatever its content makes it raise.
    """
    for key, entry in entries:
        try:
            if not isinstance(entry, dict):
                found = f"found {type(entry).__name__}, expected an object"
                raise Rejected(Reason.MALFORMED_RECORD, found)
            yield parse(key, entry)
        except MemoryError:
            raise
        except Exception as error:
            yield RejectedEntry(key, as_rejected(error))


def as_rejected(error: Exception) -> Rejected:
    """What is wrong with an entry that made its parser raise."""
    if isinstance(error, Rejected):
        return error
    return Rejected(Reason.MALFORMED_RECORD, f"{type(error).__name__}: {error}")


def mark_repeated(found: Iterable[Found]) -> Iterator[Found]:
    """Marks what has the key of an earlier entry of the same file."""
    seen: set[str] = set()
    for item in found:
        if isinstance(item, Asked | Captioned):
            if item.key in seen:
                item = replace(item, repeats=True)
            seen.add(item.key)
        yield item


def by_name(content: Any) -> Iterator[tuple[str, Any]]:
    """Entries of an object, called by their names there."""
    if not isinstance(content, dict):
        found = f"found {type(content).__name__}, expected an object of entries by number"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    for place, (name, entry) in enumerate(all_pairs(content)):
        yield as_name(name) or f"entry_{place}", entry


def by_identifier(rows: Any, field_name: str) -> Iterator[tuple[str, Any]]:
    """Entries of a list, called by their identifier, or by their place where they have none."""
    if not isinstance(rows, list):
        found = f"found {type(rows).__name__}, expected a list"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    for place, entry in enumerate(rows):
        name = as_name(entry.get(field_name)) if isinstance(entry, dict) else None
        yield name or f"entry_{place}", entry


def index_by(rows: Iterable[Any], field_name: str) -> Iterator[tuple[str, Entry | Rejected, bool]]:
    """Entries that are joined by an identifier, without which one is rejected.

    Yields:
        The identifier, or `entry_<place>` where there is none; the entry, or what is wrong; and
        whether an earlier one has the identifier.
    """
    seen: set[str] = set()
    for place, row in enumerate(rows):
        name = as_name(row.get(field_name)) if isinstance(row, dict) else None
        if name is None:
            found = f"found an entry without {field_name!r} at place {place}"
            yield f"entry_{place}", Rejected(Reason.MALFORMED_RECORD, found), False
        else:
            yield name, row, name in seen
            seen.add(name)


def table(content: Any, name: str) -> list[Any]:
    """The rows that a file holds under a name; those of a list or of JSON lines without one.

    Raises:
        Rejected: the file has no such list, or several.
    """
    if isinstance(content, list):
        return content
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise Rejected(Reason.MALFORMED_RECORD, f"found no list {name!r}")
    if isinstance(content, RepeatingObject):
        number = sum(other == name for other, _ in content.pairs)
        if number > 1:
            raise Rejected(Reason.DUPLICATE_KEY, f"found {number} lists {name!r}")
    return found


def as_name(identifier: Any) -> str | None:
    """How an identifier, a number or a text, stands in keys; None for anything else."""
    if not isinstance(identifier, int | str) or isinstance(identifier, bool):
        return None
    name = storable(str(identifier))
    return name if 0 < len(name) <= _MAX_NAME else None


def text_of(value: Any, what: str) -> str:
    """A text, or a number as text, without blanks around it; may be empty.

    Args:
        value: the content of a field.
        what: what it is, for messages: `an answer`.

    Raises:
        Rejected: it is neither, or no text that a file can hold.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        found = repr(value) if is_number else type(value).__name__
        raise Rejected(Reason.MALFORMED_RECORD, f"{what}: found {found}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejected(Reason.INVALID_UTF8, f"{what}: {error}") from None
    return value.strip()


def asked_text(entry: Entry, field_name: str) -> str:
    """A question, or another text that an entry must have.

    Raises:
        Rejected: there is none, or it is empty.
    """
    what = f"the field {field_name!r}"
    if field_name not in entry:
        raise Rejected(Reason.TEXT_MISSING, f"found no field {field_name!r}")
    found = text_of(entry[field_name], what) if entry[field_name] is not None else ""
    if not found:
        raise Rejected(Reason.TEXT_MISSING, f"found no text in {what}")
    return found


def texts(entry: Entry, field_name: str) -> tuple[str, ...]:
    """The texts of a list, `{"answer": text}` for a text included; none where it is missing.

    Raises:
        Rejected: it is no list, or one of them is no text.
    """
    found = entry.get(field_name)
    if found is None:
        return ()
    if not isinstance(found, list):
        what = f"found {type(found).__name__} in {field_name!r}, expected a list"
        raise Rejected(Reason.MALFORMED_RECORD, what)
    return tuple(
        text_of(item.get("answer") if isinstance(item, dict) else item, f"{field_name}[{place}]")
        for place, item in enumerate(found)
    )


def some(answers: tuple[str, ...], *, hides_answers: bool = False) -> tuple[str, ...]:
    """Answers of which one says something, unless a test set hides them.

    Raises:
        Rejected: there are none, or all are empty.
    """
    if not any(answers) and not hides_answers:
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, "found no answer")
    return answers if any(answers) else ()
