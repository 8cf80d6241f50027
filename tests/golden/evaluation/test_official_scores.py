"""Scores against those of each benchmark's own scorer, on 600 answers of each of three kinds.

How official_scores.npz was made: make_official_scores.py says which scorers, and runs them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from answer_cases import CASES, COUNT, KINDS, Case
from make_official_scores import digest

from mm1_pipeline.config.evaluation import AnswerForm, Metric, TaskConfig
from mm1_pipeline.config.task_files import read_task_file
from mm1_pipeline.evaluation.answers.processing import process_answer
from mm1_pipeline.evaluation.scoring.aggregates import details, mme_statistic, pope_statistic
from mm1_pipeline.evaluation.scoring.metrics import anls, relaxed_accuracy
from mm1_pipeline.evaluation.scoring.scoring import score_answer
from mm1_pipeline.evaluation.tasks import TaskItem

GOLDEN = np.load(Path(__file__).with_name("official_scores.npz"))
WORST = 1e-12
"""Worst difference measured: 4e-13, of scores that the scorer rounds to 12 digits of a percent."""
ALL = [(task, kind) for task in CASES for kind in KINDS]
MME_CATEGORIES = 10


def config_of(task: str) -> TaskConfig:
    """The package's task, but with one stop string that no answer has."""
    values = read_task_file("mme_perception" if task == "mme" else task)
    known = {name: values[name] for name in ("metric", "prompt", "answer_form") if name in values}
    return TaskConfig(**known, source="s", shots=(0,), stop=("\0",))


def item_of(task: str, number: int, case: Case) -> TaskItem:
    category = str(number * MME_CATEGORIES // COUNT) if task == "mme" else ""
    group = str(number // 2) if task == "mme" else ""
    return TaskItem(str(number), ("i",), "q", case.references, category=category, group=group)


def scored(task: str, cases: list[Case]) -> tuple[list[TaskItem], list[str], np.ndarray]:
    """Items, processed answers and scores, as an evaluation makes them."""
    config = config_of(task)
    items = [item_of(task, number, case) for number, case in enumerate(cases)]
    answers = [
        process_answer(case.answer, config, item) for case, item in zip(cases, items, strict=True)
    ]
    pairs = zip(items, answers, strict=True)
    return items, answers, np.array([score_answer(config.metric, *pair) for pair in pairs])


@pytest.mark.parametrize(("task", "kind"), ALL)
def test_every_answer_gets_the_official_score(task, kind):
    cases = CASES[task](kind, COUNT)
    assert digest(cases) == GOLDEN[f"{task}.{kind}.sha256"], "the generator gives other answers"
    expected = GOLDEN[f"{task}.{kind}"]
    _, _, found = scored(task, cases)
    assert len(found) == len(expected) == COUNT
    different = [
        (case, value, official)
        for case, value, official in zip(cases, found, expected, strict=True)
        if abs(value - official) > WORST
    ]
    assert not different, f"{len(different)} of {COUNT}, such as {different[:3]}"


@pytest.mark.parametrize("kind", KINDS)
def test_outer_spaces_count_in_the_rules_themselves(kind):
    # An evaluation takes them away before; the scorers of pages and charts do not.
    for task, rule in (("docvqa", anls), ("chartqa", relaxed_accuracy)):
        found = [rule(*case) for case in CASES[task](kind, COUNT)]
        assert np.abs(np.array(found) - GOLDEN[f"{task}.with_spaces.{kind}"]).max() < WORST


@pytest.mark.parametrize("task", CASES)
def test_the_answers_tell_right_from_wrong(task):
    values = np.concatenate([GOLDEN[f"{task}.{kind}"] for kind in KINDS])
    assert 0.1 < values.mean() < 0.95
    assert len(np.unique(values.round(9))) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_pope_gives_the_official_f1_accuracy_and_share_of_yes(kind):
    items, answers, values = scored("pope", CASES["pope"](kind, COUNT))
    f1, accuracy, yes_ratio = GOLDEN[f"pope.totals.{kind}"]
    weights = np.ones(COUNT)
    assert pope_statistic(items, answers)(weights) == pytest.approx(100 * f1, abs=1e-9)
    named = [
        TaskItem(item.key, item.images, item.question, item.references, category="random")
        for item in items
    ]
    parts = details(Metric.POPE_F1, named, values, answers)["by_category"]["random"]
    assert parts["accuracy"] == pytest.approx(100 * accuracy, abs=1e-6)  # rounded to 6 digits
    assert parts["yes_ratio"] == pytest.approx(100 * yes_ratio, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_mme_gives_the_official_sum_over_its_categories(kind):
    # The scorer's files have tabs between columns: there they stand as spaces.
    cases = [
        Case(case.answer.replace("\t", " "), case.references) for case in CASES["mme"](kind, COUNT)
    ]
    items, _, right = scored("mme", cases)
    by_category = GOLDEN[f"mme.totals.{kind}"]
    assert len(by_category) == MME_CATEGORIES
    total = mme_statistic(items, right)(np.ones(COUNT))
    assert total == pytest.approx(by_category.sum(), abs=1e-9)


def test_where_ten_people_agree_their_answer_is_right():
    for metric in (Metric.VQA_ACCURACY, Metric.TEXTVQA_ACCURACY):
        for text in ("the beatles", "6-12", "www.ofog.org", "don't", "1,000", "A.M."):
            item = TaskItem("0", ("i",), "q", (text,) * 10)
            assert score_answer(metric, item, text) == 1.0


def test_answers_handed_in_as_llava_does_are_rewritten_first():
    config = config_of("vqav2_sft")
    assert config.answer_form == AnswerForm.EVALAI
    item = TaskItem("0", ("i",), "q", ("yes",) * 10)
    assert process_answer(" Yes.", config, item) == "yes"
    assert process_answer(" Yes.", config_of("vqav2"), item) == "Yes."


def test_gqa_differs_from_its_scorer_only_where_answers_were_not_converted():
    # The scorer compares as it stands; LLaVA's conversion before it is part of our rule.
    more = 0
    for kind in KINDS:
        _, _, found = scored("gqa", CASES["gqa"](kind, COUNT))
        unconverted = GOLDEN[f"gqa.unconverted.{kind}"]
        assert (found >= unconverted).all()
        assert kind != "verbatim" or (found == unconverted).all()
        more += int((found > unconverted).sum())
    assert more > 200
