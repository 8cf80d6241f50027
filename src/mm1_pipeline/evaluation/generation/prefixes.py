"""Which beginnings prompts have in common, so that each is read once.

Worked example, `.` a position and letters what stands there:

    A B C D x y        the first two share A B C D, all three share A B
    A B C D z
    A B q

Read in sorted order, A B is read once and kept, C D once after it, then each rest. Few-shot
prompts share their shots where these are the same for a whole task, and the questions on one
image share the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_SHARED = 16
"""Positions that a beginning has beyond the one around it to be worth a call of its own. Our
choice: a call for fewer positions takes longer than computing them with each prompt."""


class SharedPrefixes(NamedTuple):
    """An order to read prompts in, and the places where others go on differently."""

    order: list[int]
    """Prompts with a common beginning are neighbours."""
    borders: list[tuple[int, ...]]
    """By prompt, not by order: lengths of the shared beginnings, rising, each shorter than the
    prompt."""


class _Interval(NamedTuple):
    depth: int
    left: int
    right: int


def shared_prefixes(streams: Sequence[np.ndarray], min_shared: int = MIN_SHARED) -> SharedPrefixes:
    """Finds the beginnings that two or more prompts share.

    Args:
        streams: int32[length] each, one or more positions; equal numbers mean equal input.
        min_shared: fewest positions of a beginning beyond the one that holds it.

    Returns:
        Order and borders; deterministic, and independent of where equal prompts stand.
    """
    keys = [stream.astype(">i4").tobytes() for stream in streams]
    order = sorted(range(len(streams)), key=lambda index: (keys[index], index))
    in_order = [streams[index] for index in order]
    borders: list[tuple[int, ...]] = [() for _ in order]
    for depth, left, right in sorted(_intervals(in_order)):
        around = borders[left][-1] if borders[left] else 0
        if depth - around >= min_shared:
            for place in range(left, right + 1):
                borders[place] += (depth,)
    by_prompt = dict(zip(order, borders, strict=True))
    return SharedPrefixes(order, [by_prompt[index] for index in range(len(streams))])


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Positions at which two prompts begin alike."""
    shorter = min(len(first), len(second))
    differing = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differing[0]) if len(differing) else shorter


def _intervals(streams: Sequence[np.ndarray]) -> list[_Interval]:
    """The widest runs of sorted prompts that share each common beginning."""
    # The last position of a prompt is never shared: its hidden state gives the first answer.
    common = [
        min(common_length(first, second), len(first) - 1, len(second) - 1)
        for first, second in itertools.pairwise(streams)
    ]
    found: list[_Interval] = []
    open_runs: list[tuple[int, int]] = []  # depth, left; deeper ones on top
    for place, depth in enumerate([*common, 0]):
        left = place
        while open_runs and open_runs[-1][0] > depth:
            deeper, left = open_runs.pop()
            found.append(_Interval(deeper, left, place))
        if depth and (not open_runs or open_runs[-1][0] < depth):
            open_runs.append((depth, left))
    return found
