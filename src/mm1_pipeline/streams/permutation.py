"""Orders that any step can compute by itself, without the steps before it.

Two needs of a training order, both met without state or long arrays:

- a shuffle of N samples whose i-th element costs no more than its own computation, so that a
  source of 100M sequences needs no table: `permute`;
- turns of several takers in given shares, never off by a whole turn: `fair_turns`.

Both are integer arithmetic of our own, so the order does not change with a library's version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 16
"""Rounds of the Feistel network. Four are enough for large domains; with 16 the 120 orders of
five elements are equally frequent (chi-square over degrees of freedom 1.1; 11.6 with 8)."""


def permute(index: NDArray[np.int64], size: int, key: tuple[object, ...]) -> NDArray[np.int64]:
    """Elements of a pseudo-random permutation of 0..size-1.

    A Feistel network on a grid of a x b >= size cells; what falls outside is sent through
    again until it falls inside (cycle walking), which keeps the map one to one.

    Args:
        index: int64[n], places in the permutation.
        size: Length of the permutation.
        key: Chooses the permutation; anything with a stable `repr`.

    Returns:
        int64[n], the elements at these places.
    """
    assert size >= 1, "nothing to permute"
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    seeds = _round_seeds(key)
    result = _feistel(index.astype(np.uint64), rows, columns, seeds)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], rows, columns, seeds)
    return result.astype(np.int64)


def fair_turns(shares: Sequence[int]) -> NDArray[np.int64]:
    """One period of turns in which every taker always has its share, to less than one turn.

    After j turns, taker k has had x_k turns with |x_k - j shares_k / sum(shares)| < 1; so after
    any j for which the share is whole, it is exact. (Tijdeman's rule for the chairman
    assignment problem: of those that may take this turn, the one whose deadline is first.)

    Args:
        shares: Turns of each taker in one period; all at least 1.

    Returns:
        int64[sum(shares)], the taker of each turn.
    """
    assert min(shares) >= 1, shares
    period, num_takers = sum(shares), len(shares)
    if num_takers == 1:
        return np.zeros(period, dtype=np.int64)
    # In units of 1 / (slack * period), so that everything stays a whole number.
    slack = 2 * num_takers - 2
    owed = [0] * num_takers
    turns = np.empty(period, dtype=np.int64)
    for turn in range(period):
        for taker, share in enumerate(shares):
            owed[taker] += share * slack
        eligible = (taker for taker in range(num_takers) if owed[taker] >= period)
        chosen = min(
            eligible,
            key=lambda taker: ((slack - 1) * period - owed[taker]) / shares[taker],
        )
        owed[chosen] -= period * slack
        turns[turn] = chosen
    return turns


def _round_seeds(key: tuple[object, ...]) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    first = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    return _mix(first + _mix(np.arange(_NUM_ROUNDS, dtype=np.uint64)))


def _feistel(
    cells: NDArray[np.uint64], rows: int, columns: int, seeds: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass of the network: row and column are shifted in turn by a hash of the other."""
    row, column = np.divmod(cells, np.uint64(columns))
    for number, seed in enumerate(seeds):
        if number % 2:
            column = (column + _mix(row ^ seed) % np.uint64(columns)) % np.uint64(columns)
        else:
            row = (row + _mix(column ^ seed) % np.uint64(rows)) % np.uint64(rows)
    return row * np.uint64(columns) + column


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: every input bit changes half of the output bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
