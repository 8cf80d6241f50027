"""JSON in pieces is JSON, wherever the pieces are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_pipeline.annotations.json_files import parse
from mm1_pipeline.corpus.json_streams import iterate_array, iterate_lines
from mm1_pipeline.ground.rejects import Rejected

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def read_until_refused(chunks) -> tuple[list, str]:
    """What an array gives before it is refused, and why it is."""
    found = []
    elements = iterate_array(chunks, 10**6)
    while True:
        try:
            found.append(next(elements))
        except Rejected as error:
            return found, error.reason.value


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=12), st.integers(1, 60), st.booleans(), st.sampled_from([None, 1]))
def test_an_array_is_the_same_in_pieces(items, size, escape, indent):
    data = json.dumps(items, ensure_ascii=escape, indent=indent).encode("utf-8", "surrogatepass")
    assert list(iterate_array(pieces(data, size), 10**6)) == list(enumerate(items))


@settings(max_examples=100, deadline=None)
@given(st.lists(values, min_size=1, max_size=8), st.integers(1, 60), st.data())
def test_a_cut_array_gives_what_is_whole_and_says_that_it_is_cut(items, size, data):
    text = json.dumps(items, ensure_ascii=False).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    found, reason = read_until_refused(pieces(text[:cut], size))
    # A character of several bytes that is cut is no text any more.
    is_text = text[:cut].decode(errors="ignore").encode() == text[:cut]
    assert reason == ("truncated_file" if is_text else "invalid_utf8")
    assert found == list(enumerate(items))[: len(found)]
    ends = [len(json.dumps(items[: n + 1], ensure_ascii=False).encode()) for n in range(len(items))]
    if is_text:  # an element with its comma is never lost
        assert len(found) >= sum(1 for end in ends if end <= cut)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 50))
def test_lines_are_the_same_in_pieces(lines, size):
    lines = [line.replace(b"\n", b" ") for line in lines]
    found = dict(iterate_lines(pieces(b"\n".join(lines), size), 25))
    for number, line in enumerate(lines, 1):
        value = found.get(number)
        if len(line) > 25:
            assert isinstance(value, Rejected)
            assert value.reason == "line_too_long"
        elif not line.strip():
            assert number not in found
        else:
            expected = parse(line)
            if isinstance(expected, Rejected):
                assert isinstance(value, Rejected)
                assert value.reason == expected.reason
            else:
                assert value == expected or value != value


def test_damage_inside_an_array_is_found_where_it_is():
    text = json.dumps([{"n": n} for n in range(1_000)]).replace('"n": 500', '"n" 500').encode()
    found, reason = read_until_refused(pieces(text, 100))
    assert reason == "invalid_json"
    assert len(found) == 500


def test_an_element_may_not_be_endless():
    endless = (b'"' + b"x" * 99 if n == 0 else b"x" * 100 for n in range(10**9))
    with pytest.raises(Rejected) as caught:
        list(iterate_array((b"[" if n == 0 else chunk for n, chunk in enumerate(endless)), 10_000))
    assert caught.value.reason in ("line_too_long", "invalid_json")
