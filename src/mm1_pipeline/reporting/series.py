"""Time series of a training: which streams, running means, thinning for plots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MAX_POINTS = 800
"""Points of one plotted line; more cannot be seen and make the page heavy."""


def stream_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Streams that appear in the rows of a training, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["losses"]))


def points(rows: Sequence[Mapping[str, Any]], *path: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number of the rows, leaving out rows that do not have it.

    Args:
        rows: rows of training_<stage>.jsonl.
        path: keys that lead to the number, for instance `"losses", "caption"`.

    Returns:
        Steps and as many values.
    """
    steps, values = [], []
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            steps.append(row["step"])
            values.append(float(value))
    return steps, values


def running_mean(steps: Sequence[int], values: Sequence[float], window: int) -> list[float]:
    """Mean over the `window` steps around each step.

    The window is centred, so that a steep curve is not shifted; towards both ends it becomes
    narrower, for the same reason. It counts steps, not rows, so the curve does not depend on
    how often rows were logged.

    Args:
        steps: rising step numbers.
        values: as many values.
        window: in steps, at least 1.

    Returns:
        As many means.
    """
    recent: deque[tuple[int, float]] = deque()
    means, upcoming = [], 0
    for step in steps:
        reach = min(step - steps[0], steps[-1] - step)
        last = step + min(window // 2, reach)
        while upcoming < len(steps) and steps[upcoming] <= last:
            recent.append((steps[upcoming], values[upcoming]))
            upcoming += 1
        first = step - min((window - 1) // 2, reach)
        while recent[0][0] < first:
            recent.popleft()
        means.append(math.fsum(value for _, value in recent) / len(recent))
    return means


def final_mean(steps: Sequence[int], values: Sequence[float], window: int) -> float | None:
    """Mean over the last `window` steps; None where there is no value."""
    last = [value for step, value in zip(steps, values, strict=True) if step > steps[-1] - window]
    return math.fsum(last) / len(last) if last else None


def thin(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, evenly spaced, the first and the last among them."""
    assert limit >= 2
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def whole_training(rows: Sequence[Mapping[str, Any]], *path: str) -> float:
    """Sum of one number over all steps of a training, logged or not.

    Exact when every step was logged; else the logged steps stand for those between them.

    Args:
        rows: rows of training_<stage>.jsonl, at least one.
        path: keys that lead to the number.
    """
    return math.fsum(points(rows, *path)[1]) * rows[-1]["step"] / len(rows)


def mean_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean share of each stream over all rows; a stream absent from a row has share 0 there."""
    counted = [row["shares"] for row in rows if row.get("shares")]
    names = dict.fromkeys(name for shares in counted for name in shares)
    return {
        name: math.fsum(shares.get(name, 0.0) for shares in counted) / len(counted)
        for name in names
    }
