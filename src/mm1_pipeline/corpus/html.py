"""The main content of a web page: its texts and images in reading order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from mm1_pipeline.corpus.boilerplate import (
    has_boilerplate_name,
    is_anchor_sign,
    is_boilerplate,
    is_boilerplate_line,
)
from mm1_pipeline.corpus.html_tree import Element, parse_page, word_set

BLOCKS = word_set(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tbody "
    "thead tfoot tr td th caption ul"
)
HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "dl"})
_ROWS = frozenset({"li", "dt", "dd", "tr", "caption", "summary"})
_CELLS = frozenset({"td", "th"})
_LAYOUT_TABLE = frozenset({"table", "pre", "ul", "ol", "dl", *HEADINGS})

_LAZY_SOURCES = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-url")
_LAZY_SOURCE_SETS = ("data-srcset", "data-lazy-srcset")
_CANDIDATE = re.compile(r"[\s,]*+(\S++)")
_CANDIDATE_SIZE = re.compile(r"\s++(\d{1,9}(?:\.\d{1,9})?)[wx](?:\s++\d{1,9}h)?\s*+", re.ASCII)
_MAX_START_DIGITS = 9
_MAX_BASE = 8_000
"""Characters of an address above which it is no honest one, and too dear to join with others."""
_MIN_MAIN_SHARE = 0.25
_BLANK = re.compile(r"[ \t\r\n\f\v\u00a0\u200b\u2028\u2029]+")
_CELL_SEPARATOR = " | "
_LINE_BREAK = "\x00"
_LINE_BREAKS = re.compile(rf" *{_LINE_BREAK}[{_LINE_BREAK} ]*")
_PLAIN_URL = re.compile(
    r"https?://[a-z0-9.-]+(?::[0-9]+)?(?:/[\w.~%:=&+!$,'@()*|/-]*(?:\?[\w.~%:=&+!$,'@()*|/-]+)?)?",
    re.ASCII,
)
"""URLs that mean what they say whatever they are relative to, in the spelling of `normal_url`."""


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text; the blanks it starts with say how it follows what came before.

    One space: the same line goes on. One newline: the next line of a list or table. Two
    newlines: a new block.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """The place of an image."""

    urls: tuple[str, ...]
    """Absolute addresses under which it may be found, the likeliest first."""


@dataclass(frozen=True, slots=True)
class HTMLDocument:
    """What a person reads on a page."""

    title: str
    parts: tuple[Text | Image, ...]


def extract_document(html: str, url: str) -> HTMLDocument:
    """Takes the main content out of a page, in reading order.

    Left out are scripts, navigation, headers, footers, asides, what class names call boilerplate,
    blocks made of links, and headings of sections that are empty then. Code keeps its lines,
    lists get markers, tables become lines of cells.

    Source: MM1, Appendix on interleaved documents (unconfirmed); the rules are our choice.

    Args:
        html: the decoded page.
        url: of the page, from which relative addresses start.

    Raises:
        Rejected: elements are nested too deeply.
    """
    page = parse_page(html)
    base = absolute_url(url, page.base) if page.base else url
    base = "" if len(base or url) > _MAX_BASE else base or url
    root = _choose_root(page.body)
    reader = _Reader(base, root.num_characters, keeps_headers=root.tag != "body")
    reader.read(root)
    return HTMLDocument(page.title, tuple(_to_parts(_without_empty_sections(reader.finish()))))


def absolute_url(base: str, address: str) -> str | None:
    """The address an element means, in the one spelling used for look-ups; None if it is none."""
    if _PLAIN_URL.fullmatch(address):
        return address
    try:
        url = urldefrag(urljoin(base, address.strip())).url
        scheme = urlsplit(url).scheme
    except ValueError:
        return None
    if scheme == "data":
        return url
    return normal_url(url) if scheme in ("http", "https") else None


def normal_url(url: str) -> str:
    """A URL with its unsafe characters escaped, as crawlers write it."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]|", errors="replace")


def _choose_root(body: Element) -> Element:
    """The element that holds the content: `main`, or the only `article`, unless nearly empty."""
    elements = list(body.elements())
    mains = [e for e in elements if e.tag == "main" or e.attributes.get("role") == "main"]
    articles = [e for e in elements if e.tag == "article"]
    for candidates in (mains, articles if len(articles) == 1 else []):
        if candidates:
            best = max(candidates, key=lambda element: element.num_characters)
            if best.num_characters >= _MIN_MAIN_SHARE * body.num_characters:
                return best
    return body


@dataclass(slots=True)
class _Run:
    """Text between two boundaries, or an image."""

    text: str = ""
    urls: tuple[str, ...] = ()
    gap: int = 0
    """Newlines before it."""
    heading: int = 0
    """Level of the heading that it is; 0 for none."""


@dataclass(slots=True)
class _List:
    """A list that is being read."""

    tag: str
    num_items: int = 0

    def next_marker(self, depth: int) -> str:
        """What the next item starts with."""
        self.num_items += 1
        return "  " * depth + (f"{self.num_items}. " if self.tag == "ol" else "- ")


class _Reader:
    """Walks through a page and writes down what a person would read."""

    def __init__(self, base: str, page_characters: int, *, keeps_headers: bool) -> None:
        self._base = base
        self._page_characters = page_characters
        self._keeps_headers = keeps_headers
        self._runs: list[_Run] = []
        self._pieces: list[str] = []
        self._gap = 2
        self._heading = 0
        self._lists: list[_List] = []
        self._marker = ""
        self._preformatted = False
        self._in_cell = False
        self._cell_images: list[_Run] = []
        self._muted = 0

    def finish(self) -> list[_Run]:
        """Everything that was read."""
        self._flush()
        return self._runs

    def read(self, element: Element) -> None:
        """Reads an element and all that is inside."""
        match element.tag:
            case "br":
                self._pieces.append("\n" if self._preformatted else _LINE_BREAK)
            case "img":
                self._add_image(element)
            case "picture":
                self._add_picture(element)
            case "math":
                self._add_formula(element)
            case "noscript":
                self._muted += 1
                self._read_children(element)
                self._muted -= 1
            case "pre":
                self._read_code(element)
            case "table" if not self._in_cell and not _is_layout(element):
                self._read_table(element)
            case _ if _is_listing(element):
                self._read_code(element)
            case tag if tag in BLOCKS:
                self._read_block(element)
            case _:
                self._read_children(element)

    def _read_children(self, element: Element) -> None:
        for child in element.children:
            if isinstance(child, str):
                if not self._muted:
                    self._pieces.append(child)
            elif not self._is_left_out(child):
                self.read(child)

    def _is_left_out(self, element: Element) -> bool:
        if element.tag == "header":
            return not self._keeps_headers
        if self._preformatted:
            return element.tag == "div" and has_boilerplate_name(element)
        return is_boilerplate(element, self._page_characters) or is_anchor_sign(element)

    def _read_block(self, element: Element) -> None:
        if self._preformatted or self._in_cell:
            # Inside of code a block is a line, inside of a cell a word.
            self._break_inside()
            self._read_children(element)
            self._break_inside()
            return
        is_line = element.tag in _ROWS or (self._lists and element.tag not in _LISTS)
        outer_heading = self._heading
        self._flush(1 if is_line else 2)
        self._heading = HEADINGS.get(element.tag, outer_heading)
        if element.tag in _LISTS:
            self._read_list(element)
        elif element.tag == "li" and self._lists:
            self._marker = self._lists[-1].next_marker(depth=len(self._lists) - 1)
            self._read_children(element)
        else:
            self._read_children(element)
        self._flush(1 if is_line else 2)
        if element.tag == "li":
            self._marker = ""
        self._heading = outer_heading

    def _break_inside(self) -> None:
        if not self._preformatted:
            self._pieces.append(" ")
        elif self._pieces and not self._pieces[-1].endswith("\n"):
            self._pieces.append("\n")

    def _read_list(self, element: Element) -> None:
        if self._lists:
            self._gap = 1  # a list inside an item goes on below its line
        start = element.attributes.get("start", "")
        is_number = start.isdecimal() and len(start) <= _MAX_START_DIGITS
        self._lists.append(_List(element.tag, int(start) - 1 if is_number else 0))
        self._read_children(element)
        self._end_run()
        self._lists.pop()

    def _read_code(self, element: Element) -> None:
        if self._in_cell or self._preformatted:
            self._read_children(element)
            return
        self._flush(2)
        self._preformatted = True
        if element.tag != "pre":  # lines are elements; the newlines between them are not shown
            children = [c for c in element.children if isinstance(c, Element) or c.strip()]
            element = Element(element.tag, children=children)
        self._read_children(element)
        self._preformatted = False
        text = "".join(self._pieces).replace("\u00a0", " ").replace("\r\n", "\n")
        self._pieces = []
        lines = [line.rstrip() for line in text.expandtabs(4).split("\n")]
        self._add_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n"))
        self._gap = 2

    def _read_table(self, table: Element) -> None:
        """Writes a table as lines of cells; images inside follow their row."""
        self._flush(2)
        for row in table.elements():
            if row.tag == "caption":
                self._read_children(row)
                self._flush(1)
            elif row.tag == "tr":
                self._read_row(row)
        self._gap = 2

    def _read_row(self, row: Element) -> None:
        self._in_cell = True
        cells: list[str] = []
        for cell in row.children:
            if isinstance(cell, Element) and cell.tag in _CELLS:
                self._read_children(cell)
                cells.append(_tidy("".join(self._pieces)).replace("\n", " "))
                self._pieces = []
        self._in_cell = False
        self._add_text(_CELL_SEPARATOR.join(filter(None, cells)))
        self._runs += self._cell_images
        self._cell_images = []
        self._gap = 1

    def _add_formula(self, element: Element) -> None:
        """Takes the TeX that many pages keep inside a formula, else its letters."""
        for inner in element.elements():
            if inner.tag == "annotation" and "tex" in inner.attributes.get("encoding", "").lower():
                self._pieces.append(f"${inner.text().strip()}$")
                return
        self._pieces.append(" ".join(element.text().split()))

    def _add_picture(self, picture: Element) -> None:
        sets = [e.attributes for e in picture.elements() if e.tag == "source"]
        images = [e for e in picture.elements() if e.tag == "img"] or [Element("img")]
        addresses = [a for attributes in sets for a in _set_addresses(attributes)]
        self._add_image(images[0], addresses)

    def _add_image(self, image: Element, more: list[str] | None = None) -> None:
        urls = [absolute_url(self._base, a) for a in (*_addresses(image), *(more or []))]
        usable = dict.fromkeys(url for url in urls if url)
        # A data: address beside a real one is a placeholder until the real one is loaded.
        real = tuple(url for url in usable if not url.startswith("data:")) or tuple(usable)
        if not real:
            return
        if self._in_cell:
            self._cell_images.append(_Run(urls=real))
            return
        if not self._preformatted:
            self._end_run()
        self._runs.append(_Run(urls=real))

    def _flush(self, gap: int = 0) -> None:
        """Ends the current block; `gap` newlines come before the next."""
        self._end_run()
        self._gap = max(self._gap, gap)

    def _end_run(self) -> None:
        if not self._pieces:
            return
        lines = _tidy("".join(self._pieces)).split("\n")
        self._pieces = []
        self._add_text("\n".join(line for line in lines if not is_boilerplate_line(line)))

    def _add_text(self, text: str) -> None:
        if text:
            self._runs.append(_Run(self._marker + text, gap=self._gap, heading=self._heading))
            self._gap, self._marker = 0, ""


def _is_listing(element: Element) -> bool:
    """Whether an element is code in Doxygen's form, made of <div> lines."""
    named = element.attributes.get("class")
    return named is not None and "fragment" in named and "fragment" in named.split()


def _is_layout(table: Element) -> bool:
    """Whether a table only arranges blocks; its cells are then read as blocks."""
    inside = [e for e in table.elements() if e is not table]
    widest = max((_num_cells(e) for e in inside if e.tag == "tr"), default=0)
    return widest <= 1 or any(e.tag in _LAYOUT_TABLE for e in inside)


def _num_cells(row: Element) -> int:
    return sum(1 for c in row.children if isinstance(c, Element) and c.tag in _CELLS)


def _tidy(text: str) -> str:
    """Collapses blanks as a browser does; line breaks stay."""
    text = _BLANK.sub(" ", text)
    return _LINE_BREAKS.sub("\n", text).strip()


def _addresses(image: Element) -> Iterator[str]:
    """Every address of an image: first what lazy loading puts in place, then `src`, then sets."""
    attributes = image.attributes
    for name in (*_LAZY_SOURCES, "src"):
        if attributes.get(name):
            yield attributes[name]
    yield from _set_addresses(attributes)


def _set_addresses(attributes: dict[str, str]) -> list[str]:
    """Addresses in a srcset, the largest image first."""
    value = next((attributes[n] for n in (*_LAZY_SOURCE_SETS, "srcset") if attributes.get(n)), "")
    found: list[tuple[str, float]] = []
    place = 0
    while candidate := _CANDIDATE.match(value, place):
        place, size = candidate.end(), 1.0
        if not candidate[1].endswith(","):  # then its size follows, up to the next comma
            end = value.find(",", place)
            end = len(value) if end < 0 else end
            if written := _CANDIDATE_SIZE.fullmatch(value, place, end):
                size = float(written[1])
            place = end
        found.append((candidate[1].rstrip(","), size))
    return [address for address, _ in sorted(found, key=lambda pair: -pair[1])]


def _without_empty_sections(runs: list[_Run]) -> list[_Run]:
    """Drops headings followed by one of their rank or by the end; the first is the title."""
    kept: list[_Run] = []
    next_heading = 1
    for place, run in reversed(list(enumerate(runs))):
        if place and 0 < next_heading <= run.heading:
            continue
        next_heading = run.heading
        kept.append(run)
    return kept[::-1]


def _to_parts(runs: list[_Run]) -> Iterator[Text | Image]:
    """Joins runs into texts between images."""
    text = ""
    started = False
    for run in runs:
        if run.urls:
            if text:
                yield Text(text)
            yield Image(run.urls)
            text = ""
        else:
            gap = "\n" * run.gap or " "
            text += gap + run.text if started else run.text
        started = True
    if text:
        yield Text(text)
