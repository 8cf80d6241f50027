"""Folders that are whole or not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes a target's place when the block ends; an error leaves the target.

    Args:
        target: Where it goes, in place of what is there.

    Yields:
        An empty folder beside the target, to be filled.
    """
    fresh, aside = (target.with_name(f".{target.name}.{word}") for word in ("new", "old"))
    for leftover in (fresh, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    if target.exists():
        target.rename(aside)
    fresh.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
