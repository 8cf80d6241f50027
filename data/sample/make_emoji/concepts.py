"""Concepts: what several artists have drawn, with its name, kind, group and keywords."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from packages import CLDR, EMOJIBASE, STYLES, Drawings, Packages
from words import KINDS, LEFT_OUT, LEVELS, NAMES, NO_ARTICLE, SINGULAR, THE

MIN_STYLES = 3
"""Of the four, so that a concept is learnt from two styles or more."""
HELD_OUT_STYLE = "fluent"
NUM_UNSEEN = 100
"""Concepts that no training picture shows in any style."""
UNSEEN_GROUPS = ("animal", "plant", "food", "vehicle", "place", "clothing", "object")
"""Of which a new one can be told to be one of its kind; a new face is another face."""
MAX_KEYWORDS = 4


@dataclass(frozen=True, eq=False)
class Concept:
    """One thing that is drawn.

    Attributes:
        code_points: Of the emoji, as Unicode writes it, joined by "-".
        name: Unicode's short name, or what the picture shows.
        kind: What kind of thing it is; empty where it has no kind between name and group.
        group: One of few words for all concepts.
        keywords: Unicode's, without the words of the name.
        drawings: SVG by style.
        is_seen: Whether training shows it.
    """

    code_points: str
    name: str
    kind: str
    group: str
    keywords: tuple[str, ...]
    drawings: dict[str, str] = field(repr=False)
    is_seen: bool = True

    @property
    def levels(self) -> tuple[str, ...]:
        """From general to special; the name is the last."""
        if self.name == self.group:
            return (self.name,)
        return tuple(word for word in (self.group, self.kind, self.name) if word)

    @property
    def styles(self) -> tuple[str, ...]:
        """Styles to learn from that have it."""
        return tuple(style for style in self.drawings if style != HELD_OUT_STYLE)


def hash_of(*parts: str) -> int:
    """A number that depends on the words alone, on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big")


def with_article(phrase: str) -> str:
    """`a cat face`, `an owl`, `grapes`, `the Tokyo tower`."""
    if phrase in THE:
        return f"the {phrase}"
    head = re.split(r" (?:with|on|of|in|over|behind|and|up|down|\w+ing) ", phrase)[0]
    is_plural = head.endswith("s") and not head.endswith(SINGULAR)
    if is_plural or phrase in NO_ARTICLE or head in NO_ARTICLE or re.match(r"\d", phrase):
        return phrase
    starts_with_vowel = re.match(r"(?!ewe|euro|one-|uni)[aeiou]|hour|x-ray|[AEIO]", phrase)
    return f"{'an' if starts_with_vowel else 'a'} {phrase}"


def read_concepts(packages: Packages) -> tuple[list[Concept], dict[str, int]]:
    """All concepts that are kept, in Unicode's order, and how many were left out, by reason."""
    entries = packages.read_json(EMOJIBASE, "en/data.json")
    meta = packages.read_json(EMOJIBASE, "meta/groups.json")
    annotations = packages.read_json(CLDR, "annotations/en/annotations.json")
    keywords = annotations["annotations"]["annotations"]
    drawings = {style: Drawings(packages, style) for style in STYLES}
    labels = {entry["label"] for entry in entries}
    concepts: dict[str, Concept] = {}
    left_out: dict[str, int] = {}
    for entry in sorted(entries, key=lambda entry: entry.get("order", 0)):
        subgroup = meta["subgroups"].get(str(entry.get("subgroup")), "")
        found = {style: svg for style in STYLES if (svg := drawings[style].find(entry["hexcode"]))}
        why = _why_left_out(entry["label"], subgroup, labels)
        if why is None and len(found) < MIN_STYLES:
            why = f"drawn in fewer than {MIN_STYLES} styles"
        if why is not None:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        name = NAMES.get(entry["label"], entry["label"]).replace("’", "'")
        if name in concepts:
            raise SystemExit(f"{entry['label']}: found a second concept of the name {name!r}")
        words = keywords.get(entry["emoji"].replace("\ufe0f", ""), {}).get("default", [])
        group, kind = _levels(subgroup, name)
        concepts[name] = Concept(
            entry["hexcode"], name, kind, group, _keywords(words, name, kind, group), found
        )
    return _hold_out(list(concepts.values())), left_out


def _why_left_out(label: str, subgroup: str, labels: set[str]) -> str | None:
    if subgroup not in LEVELS:
        return f"of the subgroup {subgroup or '(none)'}"
    if re.search(LEFT_OUT, label):
        return "not to be told at 64 pixels, or not wanted"
    base = re.match(r"(?:man|woman|men|women) (.+)", label)
    if base and {f"person {base[1]}", f"people {base[1]}", base[1]} & labels:
        return "man or woman beside a person doing the same"
    return None


def _levels(subgroup: str, name: str) -> tuple[str, str]:
    for wanted, pattern, group, kind in KINDS:
        if subgroup == wanted and re.search(rf"\b(?:{pattern})", name):
            return group, "" if kind == name else kind
    group, kind = LEVELS[subgroup]
    return group, "" if kind == name else kind


def _keywords(words: list[str], name: str, kind: str, group: str) -> tuple[str, ...]:
    """The first few that say more than the levels do."""
    said = set(re.findall(r"\w+", f"{name} {kind} {group}".lower()))
    new = [
        word
        for word in words
        if re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", word) and not set(word.split()) & said
    ]
    return tuple(new[:MAX_KEYWORDS])


def _hold_out(concepts: list[Concept]) -> list[Concept]:
    """Marks the concepts that training never shows."""
    able = [c for c in concepts if c.group in UNSEEN_GROUPS and HELD_OUT_STYLE in c.drawings]
    chosen = sorted(able, key=lambda concept: hash_of("unseen", concept.code_points))[:NUM_UNSEEN]
    unseen = {concept.name for concept in chosen}
    fields = [dict(vars(concept)) for concept in concepts]
    return [Concept(**{**one, "is_seen": one["name"] not in unseen}) for one in fields]


def describe(concept: Concept) -> dict[str, Any]:
    """What is stored of a concept beside its pictures."""
    return {"code_points": concept.code_points, "levels": list(concept.levels)}
