"""Options, open answers, extractions and summaries against what the official scorers gave.

option_scores.json was made by make_option_scores.py, which names the repositories, commits and
the command; questions and answers are ours (option_samples.py, seeded).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from option_samples import (
    extractions,
    grades,
    open_answers,
    option_answers,
    reviews,
    yes_no_answers,
)

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.evaluation.answers.mathvista import mathvista_score
from mm1_pipeline.evaluation.answers.mmmu import open_answer_match
from mm1_pipeline.evaluation.answers.option_parsing import parse_mme, parse_option
from mm1_pipeline.evaluation.formats.choices import _DOMAIN_OF
from mm1_pipeline.evaluation.scoring.aggregates import details, mme_statistic, ratio_of_means
from mm1_pipeline.evaluation.scoring.judge import Judged, judge_marks, parse_two_marks
from mm1_pipeline.evaluation.tasks import TaskItem

OFFICIAL = json.loads(Path(__file__).with_name("option_scores.json").read_text())
NUM_ANSWERS, NUM_REVIEWS = 1_000, 510


def item(key: str = "1", **fields) -> TaskItem:
    given = {"images": (), "question": "?", "references": (), **fields}
    return TaskItem(key=key, **given)


# Where an official rule takes an option and ours another or none, by kind of answer: MMMU takes the
# last of several, the article A, and `5 cm` out of `15 cm`; VLMEvalKit takes the article as well.
DIFFERENCES = {
    "scienceqa": {},
    "mmmu_options": {"several": 135, "none": 35, "text": 3, "announced": 1},
    "mmbench": {},
}
TAKEN = {"scienceqa": 194, "mmmu_options": 647, "mmbench": 578}


@pytest.mark.parametrize("name", TAKEN)
def test_the_option_is_the_one_that_official_rules_take(name):
    rows = option_answers(NUM_ANSWERS)
    differs = Counter(
        row.kind
        for row, official in zip(rows, OFFICIAL[name], strict=True)
        if official not in "-*" and parse_option(row.answer, row.options) != official
    )
    assert differs == DIFFERENCES[name]
    assert sum(official not in "-*" for official in OFFICIAL[name]) == TAKEN[name]


def test_an_option_is_named_by_every_kind_of_answer_but_those_that_name_none_or_several():
    for row in option_answers(NUM_ANSWERS):
        found = parse_option(row.answer, row.options)
        assert bool(found) == (row.kind not in ("several", "none")), row


def test_open_answers_of_mmmu_are_right_where_they_officially_are():
    found = [open_answer_match(answer, right) for right, answer in open_answers(NUM_ANSWERS)]
    assert "".join(str(int(value)) for value in found) == OFFICIAL["mmmu_open"]


def test_an_equation_is_no_answer_for_the_numbers_in_it():
    assert open_answer_match("$1000 * 12 / 500 = $24", ["1000"]) == 0.0
    assert open_answer_match("$1000 * 12 / 500 = $24", ["24"]) == 1.0


def test_extractions_of_mathvista_are_right_where_they_officially_are():
    found = []
    for problem, extraction in extractions(NUM_ANSWERS):
        facts = {
            "answer_type": problem["answer_type"],
            "precision": str(problem["precision"] or 0),
        }
        of_item = item(
            references=(problem["answer"],), options=tuple(problem["choices"] or ()), facts=facts
        )
        found.append(mathvista_score(extraction, of_item))
    assert "".join(str(int(value)) for value in found) == OFFICIAL["mathvista"]


def test_scores_by_domain_and_subject_are_mmmus():
    rows = option_answers(NUM_ANSWERS)
    items = [
        item(row.key, category=row.subject, facts={"domain": _DOMAIN_OF[row.subject]})
        for row in rows
    ]
    values = np.array(
        [float("ABCDE"[n % len(row.options)] == row.right) for n, row in enumerate(rows)]
    )
    found = details(Metric.CHOICE, items, values, [""] * len(items))
    for name, official in OFFICIAL["mmmu_domains"].items():
        domain = name.removeprefix("Overall-")
        if name == "Overall":
            assert round(float(values.mean()), 3) == official["acc"]
        elif official["num"]:
            part = found["by_domain" if domain != name else "by_category"]
            score = part[domain if domain != name else name]
            assert score["n"] == official["num"]
            assert round(score["mean"] / 100, 3) == pytest.approx(official["acc"], abs=1e-9)


def test_ratios_by_category_are_llava_benchs():
    rows = reviews(NUM_REVIEWS)
    items = [item(str(number), category=kind) for number, (kind, _) in enumerate(rows)]
    judged = {
        each.key: Judged("", None, None, {}, parse_two_marks(reply))
        for each, (_, reply) in zip(items, rows, strict=True)
    }
    marks = judge_marks(items, judged)
    found = details(Metric.JUDGE_RATIO, items, marks[:, 0], [""] * len(items), marks)
    parts = {
        name: [part["ratio"], part["reference"] / 10, part["answer"] / 10]
        for name, part in found["by_category"].items()
    }
    whole = ratio_of_means(*marks.T)(np.ones(len(items)))
    parts["all"] = [whole, marks[:, 1].mean(), marks[:, 0].mean()]
    assert parts.keys() == OFFICIAL["llava_bench"].keys()
    for name, (ratio, reference, answer) in parts.items():
        # Means are rounded to three digits before they are printed times ten.
        rounded = [round(ratio, 1), *(round(round(x, 3) * 10, 1) for x in (reference, answer))]
        assert rounded == OFFICIAL["llava_bench"][name]


def test_scores_by_capability_are_mm_vets():
    rows = grades(NUM_REVIEWS)
    items = [
        item(str(number), category="+".join(sorted(needs)))
        for number, (needs, _) in enumerate(rows)
    ]
    values = np.array([grade for _, grade in rows])
    found = details(Metric.JUDGE_GRADE, items, values, [""] * len(items))
    total = round(100 * float(values.mean()), 1)
    for table, name in (("cap-score", "by_capability"), ("cap-int-score", "by_category")):
        parts = {part: round(score["mean"], 1) for part, score in found[name].items()}
        assert {**parts, "total": total} == OFFICIAL["mm_vet"][table]


def test_sums_and_categories_are_mmes():
    rows = yes_no_answers(NUM_ANSWERS)
    items = [
        item(f"{n}", category=category, group=f"{category}/{image}", references=(right,))
        for n, (category, image, right, _) in enumerate(rows)
    ]
    values = np.array([float(parse_mme(given) == right) for _, _, right, given in rows])
    parts = details(Metric.MME_SCORE, items, values, [""] * len(items))["by_category"]
    scores = {name: part["accuracy"] + part["accuracy_plus"] for name, part in parts.items()}
    official = dict(OFFICIAL["mme"])
    totals = [official.pop(f"total {number}") for number in (0, 1)]
    assert scores == pytest.approx(official, abs=1e-5)
    assert mme_statistic(items, values)(np.ones(len(items))) == pytest.approx(sum(totals), abs=1e-6)
