"""Building blocks of the page: a section is a title and a list of blocks.

The template draws blocks, and knows no section. A new section is one function that returns a
`Section`. Every string is escaped by the template, except a `Chart`'s SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        title: its heading.
        numeric: aligns it right, with figures of equal width.
        unit: what its numbers are, shown beneath the heading.
    """

    title: str
    numeric: bool = True
    unit: str = ""


@dataclass(frozen=True)
class Cell:
    """A table's cell with an emphasis or a second, smaller part.

    Attributes:
        text: what it says.
        detail: shown small beneath, e.g. a standard error.
        strong: shown bold.
        verdict: shown as a label of this colour.
    """

    text: str
    detail: str = ""
    strong: bool = False
    verdict: Tone | None = None


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        caption: what the table shows.
        columns: its columns; the first one heads the rows.
        rows: as many cells as columns each.
        emphasised: indices of rows that stand out.
        note: shown beneath.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    emphasised: frozenset[int] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        caption: what it shows.
        svg: drawn by `charts`, which escapes the text inside.
        legend: name and series colour of what is drawn; empty when labelled directly.
        wide: takes the whole width; narrow ones stand side by side.
    """

    kind: ClassVar[str] = "chart"
    caption: str
    svg: Markup
    legend: tuple[tuple[str, int], ...] = ()
    wide: bool = True


@dataclass(frozen=True)
class Tile:
    """One number that a reader should remember.

    Attributes:
        label: what it is.
        value: the number.
        detail: its uncertainty, or where it comes from.
    """

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Tiles:
    """Numbers side by side."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Code:
    """A long text in a fixed-width face, folded away.

    Attributes:
        summary: what stays visible.
        text: what unfolds.
    """

    kind: ClassVar[str] = "code"
    summary: str
    text: str


@dataclass(frozen=True)
class ModelAnswer:
    """What one model said to an example.

    Attributes:
        model: its name.
        text: its processed output.
        score: how it was scored.
        verdict: right, wrong, or neither where answers are graded.
    """

    model: str
    text: str
    score: str
    verdict: Tone = "neutral"


@dataclass(frozen=True)
class Example:
    """One question with its image and everyone's answers.

    Attributes:
        image: data URI, or empty when the image is not at hand.
        question: what was asked; empty for captions.
        references: the right answer, or the captions of people.
        answers: one a model.
    """

    image: str
    question: str
    references: tuple[str, ...]
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True)
class Examples:
    """Example predictions of one task.

    Attributes:
        caption: which they are and how they were chosen.
        examples: in a fixed order.
    """

    kind: ClassVar[str] = "examples"
    caption: str
    examples: tuple[Example, ...]


Block = Table | Chart | Tiles | Note | Heading | Code | Examples


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        anchor: its place in the page's address; letters, digits and hyphens.
        title: its heading.
        lead: a sentence that says what is shown.
        blocks: its content.
    """

    anchor: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def without_repeats(
    rows: Sequence[tuple[Cell | str, ...]], columns: int = 1
) -> tuple[tuple[Cell | str, ...], ...]:
    """Rows whose first columns are empty where the first cell would repeat the one above."""
    above: Cell | str = ""
    shown = []
    for row in rows:
        repeats = row[0] == above
        shown.append((*[""] * columns, *row[columns:]) if repeats else row)
        above = row[0]
    return tuple(shown)
