"""Stop rules and the normalisation of answers, against cases worked out by hand."""

from __future__ import annotations

import pytest

from mm1_pipeline.config.evaluation import AnswerForm, Metric
from mm1_pipeline.evaluation.answers.postprocess import (
    CONTRACTIONS,
    cut_at_stop,
    has_stop,
    normalize_evalai_answer,
    normalize_vizwiz_answer,
    normalize_vqa_answer,
    process_output,
)

VQA_STOP = ("\n", ".", ",")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        (" a cat\n<next>", ("\n",), " a cat"),
        (" red, blue. green", VQA_STOP, " red"),
        (" blue. green, red", VQA_STOP, " blue"),
        ("no stop", VQA_STOP, "no stop"),
        ("\nfirst", ("\n",), ""),
        ("abSTOPcdSTOP", ("STOP", "cd"), "ab"),
        ("all of it.", (), "all of it."),
    ],
)
def test_an_answer_ends_at_the_first_stop_string(text, stop, expected):
    assert cut_at_stop(text, stop) == expected
    assert has_stop(text, stop) == (text != expected)


def test_a_caption_keeps_its_case_and_marks_but_no_extra_space():
    output = process_output("  A  photo of\tthe Sea, at night.\nA", Metric.CIDER, ("\n",))
    assert output == "A photo of the Sea, at night."


@pytest.mark.parametrize("metric", [m for m in Metric if m != Metric.CIDER])
def test_an_answer_is_cut_and_loses_its_outer_spaces_alone(metric):
    assert process_output(" The  Two, maybe three", metric, VQA_STOP) == "The  Two"


def test_an_answer_is_cut_before_it_is_rewritten():
    found = process_output(" Two, maybe", Metric.VQA_ACCURACY, VQA_STOP, AnswerForm.EVALAI)
    assert found == "2"


@pytest.mark.parametrize(
    ("text", "vqa", "evalai", "vizwiz"),
    [
        ("The man's hat", "man's hat", "man 's hat", "man's hat"),
        ("black,white", "black white", "blackwhite", "black white"),
        ("1,000 t-shirts", "1000 tshirts", "1000 t shirts", "1000 tshirts"),
        ("dont", "don't", "don't", "don’t"),
        ("weve", "we've", "we've", "we've"),
        ("couldntve", "couldntve", "couldntve", "couldntve"),
        ("couldn'tve", "couldn't've", "couldn't've", "couldn’t’ve"),
        ("couldnt've", "couldn't've", "couldn't've", "couldnt've"),
        ("couldnt’ve", "couldnt’ve", "couldnt’ve", "couldn’t’ve"),
        ("a\u00a0- b", "b", "b", "b"),
        ("a b\u00a0-c", "b c", "b c", "b c"),  # only a plain space beside a mark counts
    ],
)
def test_each_benchmark_has_a_normal_form(text, vqa, evalai, vizwiz):
    assert normalize_vqa_answer(text) == vqa
    assert normalize_evalai_answer(text) == evalai
    assert normalize_vizwiz_answer(text) == vizwiz


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # articles, case, spaces
        ("The  Red\tcar\n", "red car"),
        ("a", ""),
        ("an apple a day", "apple day"),
        # number words; only whole words count
        ("none", "0"),
        ("Ten", "10"),
        ("twenty one", "twenty 1"),
        ("someone", "someone"),
        # contractions
        ("dont know", "don't know"),
        ("it's", "it's"),
        ("couldnt've", "couldn't've"),
        ("y'allll", "y'all'll"),
        ("were well", "were well"),  # words that only look like contractions
        ("its shed", "its shed"),
        # a mark between letters becomes a space, next to a space nothing
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("yes!", "yes"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        # one mark that touches a space somewhere drops that mark everywhere in the text
        ("a-b -c", "ab c"),
        # a comma between digits drops every mark
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        # a full stop stays only before a digit
        ("3.5", "3.5"),
        ("u.s.", "us"),
        (".5", ".5"),
        ("5.", "5"),
        # marks that VQAv2 leaves alone
        ("10:30", "10:30"),
        ("50%", "50%"),
        ("o'clock", "o'clock"),
        ("", ""),
    ],
)
def test_vqa_normalisation(text, expected):
    assert normalize_vqa_answer(text) == expected


@pytest.mark.parametrize(
    "answer", ["yes", "0", "couldn't've", "3.5", "black white", "don't know", "10:30", ""]
)
def test_a_normalised_answer_stays_as_it_is(answer):
    assert normalize_vqa_answer(answer) == answer


def test_contractions_are_those_of_the_official_rules():
    # 113 spellings in lower case that the official table changes; it also has forms with a
    # capital I, which nothing lower-cased matches, and one reversed entry (somebody'd).
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    for wrong, right in CONTRACTIONS.items():
        if wrong == "somebody'd":
            continue
        assert len(wrong) == len(right) - 1
        assert wrong.replace("'", "") == right.replace("'", "")
