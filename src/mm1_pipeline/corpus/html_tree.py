"""A page as a small tree of what a person could see."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from selectolax.lexbor import LexborHTMLParser, LexborNode

from mm1_pipeline.ground.rejects import Reason, Rejected


def word_set(words: str) -> frozenset[str]:
    """The words of a line as a set."""
    return frozenset(words.split())


MAX_DEPTH = 150
"""Elements nested deeper than this are no honest page's, and would exhaust Python's stack."""

MAX_ELEMENTS = 300_000
"""Elements of a page that are looked at; their tree takes 300 MB."""

INVISIBLE = word_set(
    "script style template iframe object embed svg canvas video audio map head link meta "
    "button input select textarea option datalist dialog"
)
"""Elements whose content is not read: code, media, and things to click."""

_VOID = word_set("area base br col embed hr img input link meta param source track wbr !doctype")
_CLOSED_BY_THE_NEXT = word_set(
    "p li dt dd tr td th thead tbody tfoot option optgroup rp rt a nobr button"
)
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)[^>]*?(/?)>")
_FORMATTING = word_set("b big code em font i s small strike strong tt u")
_CHECKED_ABOVE_TAGS = 4_000
_MAX_REPEATED = 4_000_000
_WHOLE_TAG = re.compile(r"""<[a-zA-Z](?:[^>"']++|"[^"]*+"|'[^']*+'|["'])*+""")
_QUOTED = re.compile(r"""=\s*(?:"[^"]*"|'[^']*')""")
_LONG_TAG_CHARACTERS = 10_000
_MAX_ATTRIBUTES = 2_000
_NAME_PARTS = re.compile(r"[\s_\-:/.]+")
_HUMPS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_REMEMBERED_NAMES = 8_192
_LONG_NAME = 200
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden")


@dataclass(slots=True)
class Element:
    """An element, with what its content adds up to."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)
    num_characters: int = 0
    """Of all text inside."""
    num_link_characters: int = 0
    """Of the text inside links."""
    num_links: int = 0
    num_images: int = 0

    def elements(self) -> Iterator[Element]:
        """The element and all elements inside, in document order."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting += [c for c in reversed(element.children) if isinstance(c, Element)]

    def text(self) -> str:
        """All text inside, as it stands."""
        return "".join(c if isinstance(c, str) else c.text() for c in self.children)

    def words(self) -> frozenset[str]:
        """The words in class and id: `navBar-top` gives nav, bar, navbar, top."""
        named = f"{self.attributes.get('class', '')} {self.attributes.get('id', '')}"
        if named == " ":
            return frozenset()
        split = _split_name if len(named) <= _LONG_NAME else _split_name.__wrapped__
        return split(named)


@lru_cache(_REMEMBERED_NAMES)
def _split_name(named: str) -> frozenset[str]:
    """The words in names; those of a site's pages are always the same."""
    parts = _NAME_PARTS.split(named)
    humps = [hump for part in parts for hump in _HUMPS.findall(part)]
    return frozenset(word.lower() for word in (*parts, *humps) if word)


@dataclass(frozen=True, slots=True)
class Page:
    """A parsed page."""

    title: str
    base: str | None
    """What relative addresses start from, where the page says so."""
    body: Element


def parse_page(html: str) -> Page:
    """Parses a page into its visible elements.

    Args:
        html: the decoded page.

    Raises:
        Rejected: elements are nested so deeply, or have so many attributes, that the parser would
            need hours.
    """
    _check_depth(html)
    _check_attributes(html)
    parser = LexborHTMLParser(html)
    title = parser.css_first("head title")
    base = parser.css_first("base[href]")
    return Page(
        title=" ".join(title.text().split()) if title is not None else "",
        base=base.attributes.get("href") if base is not None else None,
        body=_Builder().build(parser.body) if parser.body is not None else Element("body"),
    )


def _check_depth(html: str) -> None:
    """Estimates the nesting before parsing, whose time grows with its square.

    Formatting elements that stay open are repeated in every block, so their number multiplies.
    Measured: 200,000 nested elements, one megabyte, take the parser 100 s.
    """
    if html.count("<") < _CHECKED_ABOVE_TAGS:
        return
    open_tags: dict[str, int] = {}
    depth = formatting = most_formatting = 0
    # Up to the last end of a tag: behind it each start would be followed to the end of the page.
    tags = _TAG.findall(html, 0, html.rfind(">") + 1)
    for closing, name, self_closing in tags:
        tag = name.lower()
        if tag in _VOID or tag in _CLOSED_BY_THE_NEXT or self_closing:
            continue
        if closing and not open_tags.get(tag):
            continue
        step = -1 if closing else 1
        open_tags[tag] = open_tags.get(tag, 0) + step
        depth += step
        formatting += step if tag in _FORMATTING else 0
        most_formatting = max(most_formatting, formatting)
        if depth > 4 * MAX_DEPTH:
            raise Rejected(Reason.PAGE_TOO_COMPLEX, f"found over {4 * MAX_DEPTH} nested elements")
    if most_formatting * len(tags) > _MAX_REPEATED:
        found = f"found {most_formatting} formatting elements left open over {len(tags)} tags"
        raise Rejected(Reason.PAGE_TOO_COMPLEX, found)


def _check_attributes(html: str) -> None:
    """Counts the attributes of very long tags, for whose number the same holds.

    Measured: 100,000 attributes of one element, 0.9 megabytes, take the parser 130 s.
    """
    if len(html) < _LONG_TAG_CHARACTERS:
        return
    for match in _WHOLE_TAG.finditer(html):
        if len(match[0]) < _LONG_TAG_CHARACTERS:
            continue
        num_attributes = len(_QUOTED.sub("", match[0]).split())
        if num_attributes > _MAX_ATTRIBUTES:
            raise Rejected(
                Reason.PAGE_TOO_COMPLEX, f"found {num_attributes} attributes of one element"
            )


class _Builder:
    """Makes elements of the parser's nodes, within limits."""

    def __init__(self) -> None:
        self._num_elements = 0

    def build(self, node: LexborNode) -> Element:
        """The element of a node, with all that is visible inside."""
        return self._build(node, (node.tag or "").lower(), _attributes_of(node), 0)

    def _build(self, node: LexborNode, tag: str, attributes: dict[str, str], depth: int) -> Element:
        self._num_elements += 1
        if depth > MAX_DEPTH or self._num_elements > MAX_ELEMENTS:
            found = f"found over {MAX_DEPTH} nested or {MAX_ELEMENTS} elements"
            raise Rejected(Reason.PAGE_TOO_COMPLEX, found)
        element = Element(tag, attributes)
        child = node.child
        while child is not None:
            if child.is_text_node:
                _add_text(element, child.text(deep=False))
            elif child.is_element_node:
                name = child.tag or ""
                if name not in INVISIBLE:
                    inner = _attributes_of(child)
                    if not (inner and _is_hidden(inner)):
                        _add_element(element, self._build(child, name.lower(), inner, depth + 1))
            child = child.next
        if tag == "a" and "href" in attributes:
            element.num_links += 1
            element.num_link_characters = element.num_characters
        elif tag == "img":
            element.num_images += 1
        return element


def _attributes_of(node: LexborNode) -> dict[str, str]:
    return {name.lower(): value or "" for name, value in node.attributes.items()}


def _is_hidden(attributes: dict[str, str]) -> bool:
    return (
        "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or bool(_HIDDEN_STYLE.search(attributes.get("style", "")))
    )


def _add_text(element: Element, text: str) -> None:
    element.children.append(text)
    element.num_characters += len(text.strip())


def _add_element(element: Element, child: Element) -> None:
    element.children.append(child)
    if child.tag == "noscript":
        return  # seen by nobody, yet it may hold the real address of a lazy image
    element.num_characters += child.num_characters
    element.num_link_characters += child.num_link_characters
    element.num_links += child.num_links
    element.num_images += child.num_images
