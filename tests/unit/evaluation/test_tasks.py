"""Items of a task: what is read, what fails, what is chosen."""

from __future__ import annotations

import logging

import pytest
from evaluation_samples import (
    caption_record,
    encoded_image,
    question_record,
    sample_captions,
    sample_questions,
)

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.evaluation.scoring.baselines import caption_centrality, most_frequent_answer

ANSWERS = ["yes"] * 10


def test_items_carry_what_the_records_say(make_task):
    questions = make_task(sample_questions(), Metric.VQA_ACCURACY)
    assert [item.key for item in questions.items] == [f"question {n}" for n in range(12)]
    assert questions.items[1].question == "what is the green shape?"
    assert len(questions.items[1].references) == 10
    assert questions.items[0].image == questions.items[1].image != questions.items[2].image
    assert len(questions.images) == 6
    assert questions.images[questions.items[2].image] == encoded_image(1)
    assert questions.failures == {}


def test_captions_have_references_and_no_question(make_task):
    captions = make_task(sample_captions(), Metric.CIDER)
    assert captions.items[3].references == ("A yellow square.", "Something yellow.")
    assert captions.items[3].question is None


def test_a_shot_shows_the_first_caption_or_the_commonest_answer(make_task):
    captions = make_task(sample_captions(), Metric.CIDER, source="captions")
    assert captions.items[0].shown_answer(Metric.CIDER) == "A red square."
    answers = ["red", "blue", "red", "blue", "no", *["maybe"] * 3, "red", "blue"]
    tied = [question_record(str(n), encoded_image(n), "which?", answers) for n in range(2)]
    questions = make_task(tied, Metric.VQA_ACCURACY, source="questions")
    assert questions.items[0].shown_answer(Metric.VQA_ACCURACY) == "red"


def test_unusable_items_stay_as_failures_and_are_never_shots(make_task, caplog):
    records = [
        question_record("sound", encoded_image(0), "what?", ANSWERS),
        question_record("nine answers", encoded_image(1), "what?", ANSWERS[:9]),
        question_record("no question", encoded_image(2), "  ", ANSWERS),
        question_record("no image", b"not an image", "what?", ANSWERS),
        question_record("cut image", encoded_image(3)[:-40], "what?", ANSWERS),
    ]
    with caplog.at_level(logging.WARNING):
        task = make_task(records, Metric.VQA_ACCURACY)
    assert len(task.items) == 5
    assert task.failures.keys() == {"nine answers", "no question", "no image", "cut image"}
    assert task.failures["nine answers"] == "found 9 answers, expected 10"
    assert task.failures["no question"] == "found no question"
    assert task.failures["no image"].startswith("image: image_undecodable")
    assert task.failures["cut image"].startswith("image: image_truncated")
    assert set(task.pool) == {"sound"}
    assert "item no image counts as wrong" in caplog.text


def test_a_caption_item_without_references_fails(make_task):
    records = [*sample_captions(), caption_record("bare", encoded_image(9), ["", " "])]
    task = make_task(records, Metric.CIDER)
    assert task.failures == {"bare": "found no reference caption"}


def test_max_items_chooses_by_seed_not_by_order(make_task):
    records = sample_questions()
    change = {"metric": Metric.VQA_ACCURACY, "max_items": 5}
    chosen = [item.key for item in make_task(records, source="a", **change).items]
    backwards = [item.key for item in make_task(records[::-1], source="b", **change).items]
    other_seed = [item.key for item in make_task(records, source="c", seed=1, **change).items]
    assert len(chosen) == 5
    assert backwards == chosen[::-1]
    assert set(other_seed) != set(chosen)
    # All records may still be shown as shots.
    assert len(make_task(records, source="d", **change).pool) == 12


def test_a_source_needs_two_records(make_task):
    with pytest.raises(ValueError, match=r"tasks.task.source: found 1 records in 'source'"):
        make_task(sample_captions()[:1], Metric.CIDER)


def test_the_frequent_answer_counts_the_whole_pool(make_task):
    def record(number: int, answer: str):
        return question_record(str(number), encoded_image(number), "what?", [answer] * 10)

    votes = ["red", "blue", "blue", "red", "green"]
    tied = make_task([record(n, vote) for n, vote in enumerate(votes)], Metric.VQA_ACCURACY)
    assert most_frequent_answer(tied) == "blue"
    clear = [record(n, vote) for n, vote in enumerate([*votes, "red"])]
    assert most_frequent_answer(make_task(clear, Metric.VQA_ACCURACY, source="b")) == "red"


def test_captions_that_tie_weigh_the_same_in_every_process() -> None:
    """Words that occur alike, in captions of other letters: only a set's order tells them apart."""
    tied = [[f"{letter}{number}" for number in range(1, 9)] for letter in "abcdefghijklmnop"]
    fillers = [f"{words[n]} {words[n]}{k}" for words in tied for n in range(8) for k in range(n)]
    weights = caption_centrality([" ".join(words) for words in tied] + fillers)
    assert len({weights[" ".join(words)] for words in tied}) == 1


def test_a_source_needs_a_usable_record(make_task):
    broken = [question_record(str(n), b"", "what?", ANSWERS) for n in range(2)]
    with pytest.raises(ValueError, match="found no usable record in 'source': image: image_empty"):
        make_task(broken, Metric.VQA_ACCURACY)
    with pytest.raises(ValueError, match=r"found no question\. Check the source's"):
        make_task(sample_captions(), Metric.VQA_ACCURACY, source="captions")
