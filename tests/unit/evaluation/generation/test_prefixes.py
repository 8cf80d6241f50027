"""Which beginnings prompts share, against a search over all pairs."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_pipeline.evaluation.generation.prefixes import common_length, shared_prefixes

streams_of = st.lists(
    st.lists(st.integers(-2, 1), min_size=1, max_size=10).map(tuple),
    min_size=1,
    max_size=12,
    unique=True,
)


def arrays(streams) -> list[np.ndarray]:
    return [np.array(stream, dtype=np.int32) for stream in streams]


def test_the_worked_example():
    letters = ["ABCDxy", "ABq", "ABCDz"]
    order, borders = shared_prefixes(
        [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in letters], min_shared=2
    )
    assert order == [0, 2, 1]
    assert borders == [(2, 4), (2,), (2, 4)]


@settings(max_examples=300, deadline=None)
@given(streams_of, st.integers(1, 3))
def test_every_border_is_shared_and_short_of_the_whole(streams, min_shared):
    order, borders = shared_prefixes(arrays(streams), min_shared)
    assert sorted(order) == list(range(len(streams)))
    for index, own in enumerate(borders):
        ends = [0, *own]
        assert all(b - a >= min_shared for a, b in itertools.pairwise(ends))
        assert ends[-1] < len(streams[index])
        for border in own:
            beginning = streams[index][:border]
            sharing = [
                other for other, stream in enumerate(streams) if stream[:border] == beginning
            ]
            assert len(sharing) >= 2
            assert all(
                border in borders[other] for other in sharing if len(streams[other]) > border
            )
            places = [order.index(other) for other in sharing]
            assert max(places) - min(places) == len(places) - 1  # neighbours


@settings(max_examples=300, deadline=None)
@given(streams_of)
def test_nothing_that_two_share_is_missed(streams):
    _, borders = shared_prefixes(arrays(streams), 1)
    for first, own in zip(streams, borders, strict=True):
        for second in streams:
            if first != second:
                common = common_length(*arrays([first, second]))
                common = min(common, len(first) - 1, len(second) - 1)
                assert max(own, default=0) >= common


def test_short_beginnings_are_not_worth_a_call():
    streams = arrays([(1, 2, 3, 4), (1, 2, 3, 5), (1, 9, 9, 9)])
    assert shared_prefixes(streams, 3).borders == [(3,), (3,), ()]
    assert shared_prefixes(streams, 4).borders == [(), (), ()]


def test_nothing_has_no_order():
    assert shared_prefixes([]) == ([], [])
