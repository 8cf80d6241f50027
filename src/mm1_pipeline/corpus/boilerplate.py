"""What on a page is not its content: navigation, advertisements, calls to share.

Source: MM1, Appendix on interleaved documents (boilerplate removal, unconfirmed); the rules are
our choice.
"""

from __future__ import annotations

import re

from mm1_pipeline.corpus.html_tree import Element, word_set

_TAGS = frozenset({"nav", "footer", "aside", "menu"})
_ROLES = word_set("navigation banner contentinfo complementary search toolbar menu menubar dialog")
_WORDS = word_set(
    "nav navbar navigation navheader navfooter navpath navtab navlist menu menubar submenu "
    "dropdown breadcrumb breadcrumbs sidebar sidenav sphinxsidebar footer masthead toolbar "
    "cookie cookies consent gdpr share sharing social related recommended comments disqus "
    "ad ads advert advertisement sponsored sponsor promo promotion newsletter subscribe signup "
    "login pagination pager prevnext toc toctree tableofcontents popup modal tooltip "
    "download downloads ttc skip skiplink search searchbox copyright noprint editsection navbox "
    "catlinks sr visually printfooter"
)
"""Words of class and id that name boilerplate."""
_IDS = word_set("header site-header page-header top topbar titlearea side-nav")
_NAMED_CONTAINERS = word_set(
    "div section ul ol dl table p form header address hr span center td li a small"
)
"""Elements that such a name may condemn; not code, whose comments are called `comment`."""
_LINKED_CONTAINERS = word_set("div section ul ol dl table p td center span")
_NEVER = frozenset({"html", "body", "main", "article", "pre", "code", "figure"})

_MIN_LINKS = 3
_MAX_LINK_SHARE = 0.6
"""A block with more of its text inside links only leads elsewhere."""
_MOST_OF_PAGE = 0.5

_LINE = re.compile(
    r"(skip to|jump to|go to) (the )?(main |page )?(content|navigation|search|top|end)\b.*"
    r"|(previous|prev|next|home|up|top|back to top|menu|search|share|print|copy|copied|loading)\W*"
    r"|(prev|previous|next)( (tutorial|page|post|article|chapter|section|topic|lesson))? ?[:»←→].*"
    r"|total running time of the script.*"
    r"|(gallery )?(generated|powered|built|created) (by|with|on) .*"
    r"|(image|img|picture|figure|photo|thumbnail)\W*"
    r"|(edit|view|show|report|improve) (on|this|the)? ?(page|source|github)\b.*"
    r"|(advertisement|sponsored( content| links)?|promoted)\W*"
    r"|(sign (in|up|out)|log ?(in|out)|register|subscribe|read more|continue reading|learn more)\W*"
    r"|(table of )?contents|on this page|all rights reserved\W*|(copyright|©).*"
    r"|(share|follow us|tweet|pin|like)( (this|it))?( (on|via|with))?"
    r"( (facebook|twitter|x|linkedin|whatsapp|pinterest|e-?mail))?\W*"
    r"|.*\b(uses|use of) cookies\b.*",
    re.IGNORECASE,
)
_MAX_LINE = 120


def is_boilerplate(element: Element, page_characters: int) -> bool:
    """Whether an element is boilerplate by its tag, its role, its name or its links.

    Args:
        element: inside the content of a page.
        page_characters: of the whole page: what holds most of it is content, whatever its name.
    """
    if element.tag in _TAGS or element.attributes.get("role", "").lower() in _ROLES:
        return True
    if element.tag in _NEVER or element.num_characters > _MOST_OF_PAGE * page_characters:
        return False
    if has_boilerplate_name(element):
        return True
    return element.tag in _LINKED_CONTAINERS and _only_leads_elsewhere(element)


def has_boilerplate_name(element: Element) -> bool:
    """Whether class or id of an element say that it is boilerplate."""
    if element.tag not in _NAMED_CONTAINERS:
        return False
    if element.attributes.get("id", "").lower() in _IDS:
        return True
    return not _WORDS.isdisjoint(element.words())


def is_boilerplate_line(text: str) -> bool:
    """Whether a whole line of text is a phrase that pages repeat."""
    return len(text) <= _MAX_LINE and _LINE.fullmatch(text.strip()) is not None


def is_anchor_sign(element: Element) -> bool:
    """Whether a link is the sign beside a heading that links to the heading itself."""
    return element.tag == "a" and element.text().strip() in {"#", "¶", "§", "🔗", "\uf0c1", "◆"}


def _only_leads_elsewhere(element: Element) -> bool:
    if element.num_links < _MIN_LINKS or element.num_images:
        return False
    return element.num_link_characters > _MAX_LINK_SHARE * element.num_characters
