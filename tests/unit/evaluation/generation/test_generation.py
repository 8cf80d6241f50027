"""Batched answers over a cache against one prompt at a time, computed anew for every token."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from evaluation_samples import encoded_image, question_record, sample_questions

from mm1_pipeline.config.evaluation import Metric
from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.prompts import build_prompts
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from typed_values import not_none

TRANSFORM = ImageTransform(size=16, encoding="png")
MAX_NEW_TOKENS = 8


@torch.no_grad()
def tokens_alone(model, tokenizer, prompt, images, *, blind=False) -> list[int]:
    """The plain way: no batch, no cache, no stored image tokens, no shared code."""
    sub_images = [resize_image(open_image(images[key]), TRANSFORM) for key in prompt.images]
    pixel_values = to_pixel_values(sub_images, TRANSFORM) * (0 if blind else 1)
    never = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]
    allowed = [token for token in range(tokenizer.vocab_size) if token not in never]
    ids, answer = prompt.input_ids.tolist(), []
    for _ in range(MAX_NEW_TOKENS):
        read = torch.tensor([ids + answer])
        borders = torch.tensor([0, read.shape[1]], dtype=torch.int32)
        output = model(read, torch.arange(read.shape[1]).unsqueeze(0), borders, pixel_values)
        logits = model.logits(output.hidden)[0, -1].tolist()
        token = max(allowed, key=logits.__getitem__)
        if token == tokenizer.eos_id:
            break
        answer.append(token)
    return answer


@pytest.fixture(scope="module")
def task(make_task):
    return make_task(sample_questions(), Metric.VQA_ACCURACY)


@pytest.fixture(scope="module")
def prompts(task, tokenizer):
    """Prompts of many lengths, mixed."""
    by_shots = [build_prompts(task, shots, 0, tokenizer, 4) for shots in (0, 1, 3)]
    return [prompt for group in zip(*by_shots, strict=True) for prompt in group]


@pytest.fixture(scope="module")
def alone(model, tokenizer, task, prompts):
    """Up to eight tokens after each prompt, computed one prompt and one token at a time."""
    return [tokens_alone(model, tokenizer, prompt, task.images) for prompt in prompts]


def generate(model, tokenizer, task, prompts, batch_size=8, *, blind=False, **options):
    features = ImageFeatures(model, task.images, TRANSFORM, blind=blind)
    generator = Generator(model, tokenizer, features, batch_size)
    defaults = {"max_new_tokens": MAX_NEW_TOKENS, "stop": ()}
    answers = generator.generate(prompts, **{**defaults, **options})
    assert all(answer.failure is None for answer in answers)
    return [answer.text for answer in answers]


def test_batched_and_cached_equals_one_by_one(model, tokenizer, task, prompts, alone):
    expected = [tokenizer.decode(tokens) for tokens in alone]
    for batch_size in (1, 5, 64):
        assert generate(model, tokenizer, task, prompts, batch_size) == expected
    # The answers tell prompts apart, or equality would mean little.
    assert len(set(expected)) > len(prompts) / 2


def test_blind_equals_one_by_one_with_blank_pixels(model, tokenizer, task, prompts, alone):
    blind = [tokens_alone(model, tokenizer, prompt, task.images, blind=True) for prompt in prompts]
    expected = [tokenizer.decode(tokens) for tokens in blind]
    for batch_size in (1, 64):
        assert generate(model, tokenizer, task, prompts, batch_size, blind=True) == expected
    # Most answers come from the image, or equality would mean little.
    assert sum(a != b for a, b in zip(blind, alone, strict=True)) > len(prompts) / 2


def test_answers_do_not_depend_on_the_order_of_prompts(model, tokenizer, task, prompts):
    forward = generate(model, tokenizer, task, prompts, 5)
    backward = generate(model, tokenizer, task, prompts[::-1], 5)
    assert backward[::-1] == forward


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(
    model, tokenizer, task, prompts, alone
):
    whole = [row for row, tokens in enumerate(alone) if len(tokens) == MAX_NEW_TOKENS]
    stop = tuple(tokenizer.decode(alone[row][2:4]) for row in whole[:2])
    expected = []
    for tokens in alone:
        prefixes = [tokenizer.decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
        stopped = [text for text in prefixes if stop[0] in text or stop[1] in text]
        expected.append([*stopped, prefixes[-1]][0])
    assert generate(model, tokenizer, task, prompts, stop=stop) == expected
    assert expected[whole[0]] == tokenizer.decode(alone[whole[0]][:4])


def test_an_answer_ends_at_eos(model, tokenizer, task, prompts, alone):
    # EOS now wins wherever a whole answer's second token did.
    row = next(row for row, tokens in enumerate(alone) if len(tokens) == MAX_NEW_TOKENS)
    last = alone[row][1]
    ending = copy.deepcopy(model)
    with torch.no_grad():
        ending.decoder.head.weight[tokenizer.eos_id] = 1.001 * model.decoder.head.weight[last]
    expected = [
        tokenizer.decode(list(itertools.takewhile(lambda token: token != last, tokens)))
        for tokens in alone
    ]
    assert generate(ending, tokenizer, task, prompts) == expected
    assert expected[row] == tokenizer.decode(alone[row][:1])


def test_the_number_of_new_tokens_is_bounded(model, tokenizer, task, prompts, alone):
    found = generate(model, tokenizer, task, prompts, max_new_tokens=3)
    assert found == [tokenizer.decode(tokens[:3]) for tokens in alone]


def test_padding_bos_and_image_tokens_are_never_generated(model, tokenizer, task, prompts, alone):
    # These rows would win wherever token 50 has a positive logit.
    tempted = copy.deepcopy(model)
    with torch.no_grad():
        for row in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id, 303):
            tempted.decoder.head.weight[row] = 100 * model.decoder.head.weight[50]
    assert generate(tempted, tokenizer, task, prompts) == list(map(tokenizer.decode, alone))


def test_progress_counts_every_prompt(model, tokenizer, task, prompts):
    counted = []
    generate(model, tokenizer, task, prompts, 5, advance=counted.append)
    assert sum(counted) == len(prompts)


def test_equal_prompts_are_computed_once(model, tokenizer, make_task, monkeypatch):
    records = [
        question_record(str(number), encoded_image(number), "what?", ["no"] * 10)
        for number in range(6)
    ]
    task = make_task(records, Metric.VQA_ACCURACY)
    prompts = build_prompts(task, 0, 0, tokenizer, 4)
    rows = []
    make_cache = type(model).make_cache
    monkeypatch.setattr(
        type(model),
        "make_cache",
        lambda self, rows_, m: rows.append(rows_) or make_cache(self, rows_, m),
    )
    blind = generate(model, tokenizer, task, prompts, blind=True)
    assert rows == [2]  # one, and the row for shared beginnings
    assert len(set(blind)) == 1
    generate(model, tokenizer, task, prompts)
    assert rows == [2, 7]


class TestImageFeatures:
    def test_an_image_is_encoded_once(self, model, task, prompts):
        features = ImageFeatures(model, task.images, TRANSFORM)
        keys = [key for prompt in prompts for key in prompt.images]
        with torch.inference_mode():
            first, again = features(keys), features(keys[::-1])
        assert features.num_encoded == len(task.images) == 6
        assert torch.equal(first, again.flip(0))
        assert first.shape == (len(keys), 4, 32)

    def test_tokens_are_those_of_the_model(self, model, task):
        features = ImageFeatures(model, task.images, TRANSFORM)
        key = next(iter(task.images))
        square = resize_image(open_image(task.images[key]), TRANSFORM)
        with torch.inference_mode():
            found = features([key])
            ids = torch.full((1, 4), model.image_token_id)
            expected = model.embed(ids, to_pixel_values([square], TRANSFORM))
        assert torch.allclose(found, expected, atol=1e-5)  # measured 0.0

    def test_blind_sees_one_blank_image(self, model, task):
        features = ImageFeatures(model, task.images, TRANSFORM, blind=True)
        with torch.inference_mode():
            found = features(list(task.images))
            blank = model.connector(model.vision(torch.zeros(1, 3, 16, 16)))
        assert features.num_encoded == 1
        assert torch.equal(found, blank.expand_as(found))

    def test_the_cache_is_bounded(self, model, task):
        image_bytes = 4 * 32 * 4
        features = ImageFeatures(model, task.images, TRANSFORM, max_bytes=2 * image_bytes)
        keys = list(task.images)
        unbounded = ImageFeatures(model, task.images, TRANSFORM)
        with torch.inference_mode():
            for _ in range(2):
                assert torch.allclose(features(keys), unbounded(keys), atol=1e-5)  # measured 0.0
            features(keys[-1:])
        assert features.num_encoded == 6 + 6
        assert unbounded.num_encoded == 6

    def test_announced_neighbours_are_encoded_together_whatever_came_before(self, model, task):
        keys = list(task.images)
        with torch.inference_mode():
            whole = ImageFeatures(model, task.images, TRANSFORM)
            whole.expect(keys)
            expected = whole(keys)
            later = ImageFeatures(model, task.images, TRANSFORM)
            later.expect(keys)
            found = later(keys[3:])
        assert torch.equal(found, expected[3:])
        assert later.num_encoded == 6

    def test_a_broken_image_fails_alone(self, model, task):
        keys = list(task.images)
        images = {**task.images, keys[1]: b"GIF89a"}
        del images[keys[2]]
        features = ImageFeatures(model, images, TRANSFORM)
        features.expect(keys)
        with torch.inference_mode():
            assert "image_undecodable" in not_none(features.failure(keys[:2]))
            assert "image_missing" in not_none(features.failure(keys[2:3]))
            assert features.failure([keys[0], *keys[3:]]) is None
            with pytest.raises(ValueError, match="image_undecodable"):
                features(keys)


def test_a_broken_image_fails_its_prompts_alone(model, tokenizer, task, prompts, alone):
    key = prompts[0].images[-1]
    broken = dataclasses.replace(task, images={**task.images, key: b""})
    features = ImageFeatures(model, broken.images, TRANSFORM)
    generator = Generator(model, tokenizer, features, 4)
    answers = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=())
    failing = [key in prompt.images for prompt in prompts]
    assert 0 < sum(failing) < len(prompts)
    for answer, fails, tokens in zip(answers, failing, alone, strict=True):
        if fails:
            assert answer.text == ""
            assert "image_empty" in not_none(answer.failure)
        else:
            assert answer == (tokenizer.decode(tokens), None)
