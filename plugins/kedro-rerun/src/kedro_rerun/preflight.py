"""What is known to be wrong before the first node of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from kedro_rerun.errors import StalenessError, without_secrets


class Mistake(NamedTuple):
    """One thing that a user has to mend before some nodes can run."""

    text: str
    """Which parameter, what was found, what is expected, how to mend it."""
    nodes: frozenset[str]
    """Nodes that would fail. A run in which none of them must run does not care."""


class PreflightError(StalenessError):
    """A run that would fail is not begun."""


def concerning(mistakes: Iterable[Mistake], nodes: Collection[str]) -> list[str]:
    """The texts of those that stand in the way of some nodes, each once, without secrets."""
    texts = (found.text for found in mistakes if found.nodes & set(nodes))
    return list(dict.fromkeys(map(without_secrets, texts)))


def refusal(texts: Collection[str]) -> str:
    """What a run says that is not begun."""
    number = "one mistake" if len(texts) == 1 else f"{len(texts)} mistakes"
    listed = "\n".join(f"  - {text}" for text in texts)
    return (
        f"Found {number} before the first node, so none was run:\n{listed}\n"
        f"Relative paths begin at {Path.cwd()}."
    )
