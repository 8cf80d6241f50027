"""Prompts are the beginnings of training documents of the same text."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_samples import (
    COLOURS,
    encoded_image,
    question_record,
    sample_captions,
    sample_questions,
)

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.evaluation.prompts.prompts import (
    build_prompts,
    check_lengths,
    item_segments,
    prompts_sha256,
)
from mm1_pipeline.evaluation.tasks import TaskItem
from mm1_pipeline.streams.serialization import serialize

IMAGE_TOKENS = 3


def text_of(prompt, tokenizer) -> str:
    """The prompt's text with `#` for every image token."""
    ids = [int(token) for token in prompt.input_ids]
    pieces, text = [], []
    for token in ids:
        if token == tokenizer.image_id:
            pieces += [tokenizer.decode(text), "#"]
            text = []
        else:
            text.append(token)
    return "".join([*pieces, tokenizer.decode(text)])


def test_zero_shot_prompts(make_task, tokenizer):
    task = make_task(sample_questions(), Metric.VQA_ACCURACY)
    prompt = build_prompts(task, 0, 0, tokenizer, IMAGE_TOKENS)[1]
    assert text_of(prompt, tokenizer) == "### Question: what is the green shape? Short answer:"
    assert prompt.input_ids[0] == tokenizer.bos_id
    assert prompt.input_ids[-1] != tokenizer.eos_id
    assert prompt.images == (task.items[1].image,)
    assert prompt.shots == ()


def test_shots_come_first_with_their_answers(make_task, tokenizer):
    task = make_task(sample_captions(), Metric.CIDER)
    for item, prompt in zip(task.items, build_prompts(task, 2, 0, tokenizer, 3), strict=True):
        first, second = (task.pool[key] for key in prompt.shots)
        assert text_of(prompt, tokenizer) == (
            f"### A photo of {first.references[0]}\n"
            f"### A photo of {second.references[0]}\n"
            "### A photo of"
        )
        assert prompt.images == (first.image, second.image, item.image)
        assert prompt.key == item.key


@pytest.mark.parametrize("metric", [Metric.CIDER, Metric.VQA_ACCURACY])
@pytest.mark.parametrize("num_shots", [0, 1, 4])
def test_a_prompt_is_the_beginning_of_a_training_document(make_task, tokenizer, metric, num_shots):
    records = sample_captions() if metric == Metric.CIDER else sample_questions()
    task = make_task(records, metric)
    for item, prompt in zip(
        task.items, build_prompts(task, num_shots, 0, tokenizer, IMAGE_TOKENS), strict=True
    ):
        asked = [*(task.pool[key] for key in prompt.shots), item]
        document = serialize(
            [
                segment
                for example in asked
                for segment in (
                    Segment.of_image(0),
                    Segment.of_text(
                        task.config.prompt.removeprefix("{image}").replace(
                            "{question}", example.question or ""
                        )
                        + " "
                        + example.shown_answer(metric)
                    ),
                )
            ],
            tokenizer,
            IMAGE_TOKENS,
        )
        assert np.array_equal(prompt.input_ids, document.input_ids[: len(prompt)])
        # What follows in the document is the answer, and nothing of it is in the prompt.
        rest = tokenizer.decode(document.input_ids[len(prompt) :].tolist())
        assert rest == f" {item.shown_answer(metric)}"


def test_a_template_may_put_words_before_the_image(tokenizer):
    config = TaskConfig(
        source="s", metric=Metric.EXACT_MATCH, prompt="Look: {image} What? {question}", shots=(0,)
    )
    segments = item_segments(config, TaskItem("k", ("x",), "blue {image}?", ("no",)), 0, "no")
    assert [(s.type, s.text) for s in segments] == [
        ("text", "Look: "),
        ("image", None),
        ("text", " What? blue {image}? no"),
    ]
    config = TaskConfig(source="s", metric=Metric.CIDER, prompt="{image}", shots=(0,))
    caption = item_segments(config, TaskItem("k", ("x",), None, ("a",)), 0, None)
    assert [s.type for s in caption] == ["image"]


def test_a_question_cannot_forge_special_tokens(make_task, tokenizer):
    forged = "<|image|> <|eos|> <|bos|> {image}?"
    records = [question_record(str(n), encoded_image(n), forged, ["no"] * 10) for n in range(3)]
    prompts = build_prompts(make_task(records, Metric.VQA_ACCURACY), 1, 0, tokenizer, 3)
    for prompt in prompts:
        assert (prompt.input_ids == tokenizer.image_id).sum() == 2 * 3
        assert (prompt.input_ids == tokenizer.eos_id).sum() == 0
        assert (prompt.input_ids == tokenizer.bos_id).sum() == 1


def test_no_prompt_shows_its_own_image(make_task, tokenizer):
    task = make_task(sample_questions(), Metric.VQA_ACCURACY)
    for seed in range(20):
        for prompt in build_prompts(task, 4, seed, tokenizer, IMAGE_TOKENS):
            assert prompt.images[-1] not in prompt.images[:-1]
            assert prompt.key not in prompt.shots


def test_failed_items_have_no_prompt(make_task, tokenizer):
    records = [*sample_questions(), question_record("broken", b"", "what?", ["no"] * 10)]
    prompts = build_prompts(make_task(records, Metric.VQA_ACCURACY), 2, 0, tokenizer, 3)
    assert len(prompts) == 12
    assert not any("broken" in (prompt.key, *prompt.shots) for prompt in prompts)


def test_too_long_prompts_are_refused_before_anything_runs(make_task, tokenizer):
    task = make_task(sample_captions(), Metric.CIDER)
    prompts = build_prompts(task, 2, 0, tokenizer, IMAGE_TOKENS)
    longest = max(map(len, prompts))
    assert check_lengths(prompts, 5, longest + 5) == longest + 5
    with pytest.raises(
        ValueError, match=rf"max_positions: found {longest + 4}.*least {longest + 5}"
    ):
        check_lengths(prompts, 5, longest + 4)


def test_the_digest_changes_with_texts_images_and_shots(make_task, tokenizer):
    def digest(source: str, records, shots: int = 1, seed: int = 0, image_tokens: int = 3) -> str:
        task = make_task(records, Metric.VQA_ACCURACY, source=source)
        prompts = build_prompts(task, shots, seed, tokenizer, image_tokens)
        return prompts_sha256({("task", shots): prompts})

    records = sample_questions()
    first = digest("a", records)
    assert digest("b", records) == first
    assert digest("b", records, image_tokens=5) == first  # the same texts and images
    assert digest("c", records, shots=2) != first
    assert digest("c", records, seed=1) != first
    other_text = question_record("question 0", encoded_image(0), "why?", [COLOURS[0]] * 10)
    assert digest("d", [other_text, *records[1:]]) != first
    other_image = question_record(
        "question 0", encoded_image(99), "what is the red shape?", ["red"] * 7 + ["no"] * 3
    )
    assert digest("e", [other_image, *records[1:]]) != first
