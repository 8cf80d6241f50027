"""Mixed resolution: the budget by hand, and prompts whose images differ in positions."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass

import numpy as np
import pytest
from evaluation_samples import sample_questions

from mm1_pipeline.config.evaluation import Metric, MixedResolution
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.evaluation.evaluate import ChatModels, evaluate
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.chat_prompts import ChatPrompts
from mm1_pipeline.evaluation.prompts.prompts import build_prompts
from mm1_pipeline.evaluation.prompts.resolution import (
    SubImageCounter,
    check_budget,
    sub_image_keys,
    sub_images_per_example,
)
from mm1_pipeline.streams.shard_index import ShardIndex

GRID = SubImageConfig(grid=2)


@dataclass(frozen=True)
class _Prompt:
    """A prompt of 144 positions a square."""

    num_sub_images: tuple[tuple[int, ...], ...]
    num_text: int

    def __len__(self) -> int:
        return 144 * sum(map(sum, self.num_sub_images)) + self.num_text


def check(num_shots: int, num_high: int, num_text: int, max_new_tokens: int = 0) -> None:
    resolution = MixedResolution(num_high_shots=num_high)
    num_sub_images = sub_images_per_example([["x"]] * (num_shots + 1), resolution, lambda _image: 5)
    short = _Prompt(num_sub_images, num_text // 2)
    check_budget(
        "t", [short, _Prompt(num_sub_images, num_text), short], resolution, 144, max_new_tokens
    )


def test_the_papers_arithmetic():
    """9 x 720 = 6,480 does not fit 4,096; 5 x 144 + 4 x 720 = 3,600 does, with 496 beside."""
    check(8, 3, num_text=480, max_new_tokens=16)
    with pytest.raises(
        ValueError,
        match=r"tasks.t.resolution: found 8 shots whose images take 9 x 720 = 6,480 positions, "
        r"beside 200 of text and answer; allowed are 4,096 together. With num_high_shots: 3, the "
        r"images take 5 x 144 \+ 4 x 720 = 3,600, which fits.",
    ):
        check(8, 8, num_text=190, max_new_tokens=10)
    with pytest.raises(ValueError, match=r"With num_high_shots: 2"):
        check(8, 3, num_text=497)
    with pytest.raises(ValueError, match=r"num_high_shots: 0, at most 22 shots fit"):
        check(40, 3, num_text=100)
    with pytest.raises(ValueError, match="Not even the query alone fits"):
        check(0, 3, num_text=4000)
    with pytest.raises(ValueError, match="Ask for fewer shots"):
        check(2, 0, num_text=3500)


@pytest.mark.parametrize("num_shots", range(12))
@pytest.mark.parametrize("num_text", [0, 300, 900, 1500, 2600])
def test_what_is_named_fits_and_one_more_does_not(num_shots, num_text):
    try:
        check(num_shots, 12, num_text)
    except ValueError as error:
        if "With num_high_shots" not in str(error):
            return
        named = int(str(error).split("With num_high_shots: ")[1].split(",")[0])
        check(num_shots, named, num_text)
        with pytest.raises(ValueError, match="found"):
            check(num_shots, named + 1, num_text)


def test_images_that_need_no_crops_are_not_counted_as_if_they_had_some():
    resolution = MixedResolution(num_high_shots=8)
    small = sub_images_per_example([["x"]] * 9, resolution, lambda _image: 1)
    check_budget("t", [_Prompt(small, 2000)], resolution, 144, 0)


def test_last_shots_and_query_stay_high():
    def num_sub_images(images, num_high):
        resolution = None if num_high is None else MixedResolution(num_high_shots=num_high)
        return sub_images_per_example(images, resolution, {"a": 5, "b": 5, "small": 1}.__getitem__)

    assert num_sub_images([["a"], ["b"], ["a"], ["b"]], 1) == ((1,), (1,), (5,), (5,))
    assert num_sub_images([["a"], ["b"]], 3) == ((5,), (5,))
    assert num_sub_images([["a"], ["b"], ["small"]], 0) == ((1,), (1,), (1,))
    assert num_sub_images([["a"], ["small"], ["b"]], None) == ((5,), (1,), (5,))
    assert num_sub_images([["a", "small"], ["b", "a"]], 0) == ((1, 1), (5, 5))


@pytest.fixture
def index(world) -> ShardIndex:
    """Of a training in which an image above 16 pixels is five sub-images."""
    return dataclasses.replace(ShardIndex.read(world.shards), sub_images=GRID)


def test_an_example_of_many_images_shows_the_overview_of_each():
    resolution = MixedResolution(num_high_shots=1, max_high_images=2)
    images = [["a"], ["a", "a"], ["a", "a", "a"]]
    found = sub_images_per_example(images, resolution, lambda _image: 5)
    assert found == ((1,), (5, 5), (1, 1, 1))


@pytest.mark.parametrize("is_chat", [False, True], ids=["document", "chat"])
def test_prompts_have_the_positions_of_each_image(make_task, tokenizer, index, is_chat):
    def prompts_of(sub_images, num_high):
        resolution = MixedResolution(num_high_shots=num_high, sub_images=sub_images)
        task = make_task(sample_questions(), Metric.VQA_ACCURACY, resolution=resolution)
        tokens = index.packing.image_tokens
        if is_chat:
            return ChatPrompts(task, tokenizer, index).build_all(3, 0)
        counter = SubImageCounter(task.images, index.image, sub_images or index.sub_images)
        return build_prompts(task, 3, 0, tokenizer, tokens, counter)

    trained = prompts_of(None, 1)
    assert [p.content for p in prompts_of(GRID, 1)] == [p.content for p in trained]
    for prompt, low in zip(trained, prompts_of(None, 0), strict=True):
        assert prompt.num_sub_images == ((1,), (1,), (5,), (5,))
        runs = np.flatnonzero(np.diff(prompt.input_ids == tokenizer.image_id))
        assert list(np.diff(runs)[::2]) == [4, 4, 20, 20]
        # The same images in the same order; the last two shots differ by the crops of one.
        shown = [image for image in prompt.images if "/" not in image]
        assert shown == [image for image in low.images if "/" not in image]
        assert prompt.images[2:7] == tuple(sub_image_keys(shown[2], 5))
        assert len(prompt) - len(low) == 4 * 4
        assert prompt.sha256 != low.sha256  # or a log of the one would answer the other
    assert {p.num_sub_images for p in prompts_of(SubImageConfig(grid=3), 1)} == {
        ((1,), (1,), (10,), (10,))
    }


def test_documents_are_answered_with_the_crops_of_their_task(world, tmp_path, monkeypatch):
    """The whole stage: a base model sees crops where the task cuts them, and answers anew."""
    seen = []
    call = ImageFeatures.__call__
    monkeypatch.setattr(
        ImageFeatures, "__call__", lambda self, keys: seen.extend(keys) or call(self, keys)
    )

    def run(resolution, name):
        question = world.config.tasks["questions"]
        tasks = {"questions": dataclasses.replace(question, resolution=resolution)}
        config = dataclasses.replace(world.config, tasks=tasks)
        seen.clear()
        evaluate(config, {"pretrain": world.model}, **world.inputs(), output_dir=tmp_path / name)
        path = tmp_path / name / "pretrain" / "questions_2shot.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    whole = run(None, "whole")
    assert not any("/" in key for key in seen)
    mixed = run(MixedResolution(num_high_shots=1, sub_images=GRID), "mixed")
    assert {key.partition("/")[2] for key in seen} == {"", "1", "2", "3", "4"}
    assert [row["shots"] for row in mixed] == [row["shots"] for row in whole]
    outputs = [[row["raw_output"] for row in rows] for rows in (whole, mixed)]
    assert sum(a != b for a, b in zip(*outputs, strict=True)) > 3


@pytest.mark.parametrize("is_chat", [False, True], ids=["document", "chat"])
def test_both_kinds_of_prompts_are_refused_before_anything_runs(world, tmp_path, is_chat):
    resolution = MixedResolution(num_high_shots=2, sub_images=GRID, max_positions=100)
    question = dataclasses.replace(world.config.tasks["questions"], resolution=resolution)
    config = dataclasses.replace(world.config, tasks={"questions": question})
    models = {} if is_chat else {"pretrain": world.model}
    chat = ChatModels({"sft": world.model}, world.shards) if is_chat else None
    with pytest.raises(ValueError, match=r"3 x 20 = 60 positions.*With num_high_shots: \d"):
        evaluate(config, models, **world.inputs(), output_dir=tmp_path, chat=chat)
    assert not list(tmp_path.iterdir())


def test_a_resolution_that_changes_nothing_is_said(world, tmp_path, caplog):
    tasks = {
        name: dataclasses.replace(task, resolution=MixedResolution(num_high_shots=1))
        for name, task in world.config.tasks.items()
    }
    config = dataclasses.replace(world.config, tasks=tasks)
    models, inputs = {"pretrain": world.model}, world.inputs()
    with caplog.at_level(logging.WARNING):
        found = evaluate(config, models, **inputs, output_dir=tmp_path / "a")
    assert "captions: resolution has no effect" in caplog.text
    plain = evaluate(world.config, models, **inputs, output_dir=tmp_path / "b")
    assert json.dumps(found) == json.dumps(plain)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"sub_images\.grid: found 1"):
        MixedResolution(sub_images=SubImageConfig())
    with pytest.raises(ValueError, match="num_high_shots: found -1"):
        MixedResolution(num_high_shots=-1)
    assert SubImageCounter({}, ImageTransform(size=16), SubImageConfig())("unread") == 1
