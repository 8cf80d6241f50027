"""Options, yes and no, numbers and texts inside of answers, against rules worked by hand."""

from __future__ import annotations

import random

import pytest

from mm1_pipeline.evaluation.answers.mmmu import open_answer_match
from mm1_pipeline.evaluation.answers.option_parsing import parse_mme, parse_option, parse_pope
from mm1_pipeline.evaluation.scoring.metrics import (
    anls,
    edit_distance,
    exact_match,
    relaxed_accuracy,
)

OPTIONS = ("a cat", "a black cat", "a dog", "none of them")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("[d].", "D"),
        ("A. a cat", "A"),
        ("C) because it barks", "C"),
        ("B: the black one", "B"),
        ("The answer is C", "C"),
        ("the correct option is (B), not A.", "B"),
        ("Answer: D\nIt is clear.", "D"),
        ("I would say (C) here", "C"),
        ("It is (A) or (B)", ""),
        ("E", ""),
        ("The answer is E", ""),
        ("a dog", "C"),
        ("A Dog.", "C"),
        ("It shows a dog on grass", "C"),
        # The longer option holds the shorter one's last word, not its text; both articles differ.
        ("It is a black cat", "B"),
        ("a cat and a dog", ""),
        ("nothing", ""),
        ("", ""),
        ("A cat sits there", "A"),
    ],
)
def test_an_option_is_named_or_not(answer, expected):
    assert parse_option(answer, OPTIONS) == expected


def test_of_nested_options_the_longer_one_is_meant():
    assert parse_option("it is dark red here", ["red", "dark red", "blue"]) == "B"


@pytest.mark.parametrize(
    ("answer", "pope", "mme"),
    [
        ("Yes", "yes", "yes"),
        ("No", "no", "no"),
        ("no.", "no", "no"),
        ("No, there is none. Yes.", "no", "no"),
        ("There is not a dog.", "no", "other"),
        ("Yes, it is. No doubt", "yes", "yes"),
        ("NO", "yes", "no"),  # POPE's own rule knows No, not and no only
        ("maybe", "yes", "other"),
        ("", "yes", "other"),
        (" yes it is", "yes", "yes"),
        ("   yes", "yes", "other"),  # MME looks at the first 4 characters, spaces and all
        ("no\tdog", "yes", "no"),  # POPE parts words at spaces alone
    ],
)
def test_yes_and_no(answer, pope, mme):
    assert parse_pope(answer) == pope
    assert parse_mme(answer) == mme


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("tulip", ["tulip"], 1.0),
        ("TULIP", ["tulip"], 1.0),
        ("tulp", ["tulip"], 0.8),
        ("tul", ["tulip"], 0.6),
        ("tu", ["tulip"], 0.0),  # a similarity of 0.4 is below a half
        ("ab", ["abcd"], 0.5),  # exactly a half counts
        ("the  tul", ["the tulip"], 7 / 9),
        ("th  tulip", ["the tulip"], 8 / 9),  # one longer as it stands, and one letter short
        ("ß", ["a"], 0.5),
        ("x", ["tulip", "x"], 1.0),
        ("the  tulip", ["the tulip"], 1.0),
        ("", [""], 1.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls(answer, references, expected):
    assert anls(answer, references) == pytest.approx(expected, abs=1e-12)


def test_edit_distance_is_a_metric_and_knows_the_classic():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab", k=rng.randint(0, 6))) for _ in range(25)]
    for one in texts:
        for two in texts:
            distance = edit_distance(one, two)
            assert distance == edit_distance(two, one)
            assert (distance == 0) == (one == two)
            assert all(distance <= edit_distance(one, x) + edit_distance(x, two) for x in texts[:5])


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("95", "100", 1.0),
        ("94.9", "100", 0.0),
        ("1,050", "1000", 0.0),  # a text: Python reads no number with commas
        ("1,050", "1,050", 1.0),
        ("1,050", "1,051", 0.0),
        ("Mexico.", "Mexico", 0.0),
        ("mexico", "Mexico", 1.0),
        ("5.", "5", 1.0),
        ("$5", "5", 0.0),
        ("1e3", "1_000", 1.0),
        ("0.0", "0", 0.0),  # to the reference 0, every answer is a text
        ("nan", "nan", 0.0),
        ("%", "%", 1.0),
        ("50%", "0.5", 1.0),
        ("50%", "50", 0.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("-95", "-100", 1.0),
        ("Blue", "blue", 1.0),
        ("blue", "red", 0.0),
        ("about 100", "100", 0.0),
    ],
)
def test_relaxed_accuracy(answer, reference, expected):
    assert relaxed_accuracy(answer, [reference]) == expected


def test_exact_match_forgives_case_spaces_and_a_full_stop():
    assert exact_match(" Blue. ", ["blue"]) == 1.0
    assert exact_match("blue sky", ["blue"]) == 0.0
    assert exact_match("", ["blue"]) == 0.0
    assert exact_match("BLUE..", ["Blue"]) == 1.0
    assert exact_match("blue  sky", ["blue sky"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("So it is 4.50 cm", ["4.5"], 1.0),
        ("4.504", ["4.5"], 1.0),
        ("4.51", ["4.5"], 0.0),
        ("1,000 men", ["1000"], 1.0),
        ("It is the Red Sea.", ["red sea"], 1.0),
        ("It is credible", ["red"], 1.0),  # the official rule looks inside of words
        ("red", ["blue", "red"], 1.0),
    ],
)
def test_open_answers(answer, references, expected):
    assert open_answer_match(answer, references) == expected
