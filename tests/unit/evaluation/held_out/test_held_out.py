"""Held-out losses against one document at a time, from logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import read_records
from mm1_pipeline.evaluation.held_out.caption_losses import (
    CaptionLosses,
    caption_document,
    caption_losses,
    other_images,
)
from mm1_pipeline.evaluation.held_out.held_out import (
    held_out_losses,
    stream_losses,
    task_captions,
    validation_captions,
)
from mm1_pipeline.evaluation.tasks import load_task
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import ShardIndex, Split
from mm1_pipeline.streams.shards import split_of
from typed_values import not_none


@pytest.fixture
def index(world) -> ShardIndex:
    return ShardIndex.read(world.shards)


def held_out_records(world, source):
    return [
        record
        for record in read_records(world.records, source)
        if split_of(source, record.key, 0.3, 0) == Split.VALIDATION
    ]


@torch.no_grad()
def losses_from_logits(model, tokenizer, index, record, pixel_values=None) -> list[float]:
    """The loss of every text token and EOS of one record, by hand."""
    tokens = serialize(record.segments, tokenizer, index.packing.image_tokens)
    sub_images = [resize_image(open_image(image.bytes), index.image) for image in record.images]
    if pixel_values is None:
        pixel_values = to_pixel_values(sub_images, index.image)
    ids = torch.from_numpy(tokens.input_ids).long().unsqueeze(0)
    borders = torch.tensor([0, ids.shape[1]], dtype=torch.int32)
    hidden = model(ids, torch.arange(ids.shape[1]).unsqueeze(0), borders, pixel_values).hidden
    log_probabilities = model.logits(hidden)[0].double().log_softmax(-1)
    return [
        -float(log_probabilities[place - 1, ids[0, place]])
        for place in range(1, ids.shape[1])
        if tokens.loss_mask[place]
    ]


def test_validation_captions_are_the_held_out_records(world, tokenizer, index):
    records = held_out_records(world, "pairs")
    documents = validation_captions(world.shards, "pairs", index, 100)
    assert len(documents) == len(records) > 4
    texts = {tokenizer.decode(document.input_ids.tolist()) for document in documents}
    assert texts == {f" {record.segments[1].text}" for record in records}
    assert len({document.image for document in documents}) == len(documents)
    assert len(validation_captions(world.shards, "pairs", index, 3)) == 3


def test_a_document_from_shards_is_a_document_from_the_record(world, tokenizer, index):
    from_shards = {
        tokenizer.decode(document.input_ids.tolist()): document
        for document in validation_captions(world.shards, "pairs", index, 100)
    }
    for record in held_out_records(world, "pairs"):
        text = not_none(record.segments[1].text)
        direct = caption_document(record.images[0].bytes, text, tokenizer, index)
        packed = from_shards[f" {text}"]
        assert torch.equal(direct.input_ids, packed.input_ids)
        assert torch.equal(direct.labels, packed.labels)
        assert torch.equal(direct.pixel_values, packed.pixel_values)


def test_caption_losses_are_means_over_the_caption(world, model, tokenizer, index):
    documents = validation_captions(world.shards, "pairs", index, 100)
    found = caption_losses(model, documents, seed=0)
    assert found is not None
    others = other_images([document.image for document in documents], seed=0)
    records = {f" {r.segments[1].text}": r for r in held_out_records(world, "pairs")}
    for place, document in enumerate(documents):
        record = records[tokenizer.decode(document.input_ids.tolist())]
        pixels = {
            "right": document.pixel_values,
            "blank": torch.zeros_like(document.pixel_values),
            "shuffled": documents[others[place]].pixel_values,
        }
        for name, values in pixels.items():
            expected = np.mean(
                losses_from_logits(model, tokenizer, index, record, values.unsqueeze(0))
            )
            # float32 against float64 after the logits: worst 3e-7 relative.
            assert getattr(found, name)[place] == pytest.approx(expected, rel=5e-6)


def test_stream_losses_are_means_over_tokens(world, model, tokenizer, index):
    found = stream_losses(model, world.shards, index, max_sequences=1000)
    assert found["streams"].keys() == {"caption", "text"}
    assert found["sources"].keys() == {"pairs", "texts"}
    expected = [
        loss
        for record in held_out_records(world, "pairs")
        for loss in losses_from_logits(model, tokenizer, index, record)
    ]
    assert found["sources"]["pairs"]["n_tokens"] == len(expected)
    # Reported with 6 decimals; float32 gives 2e-7 relative.
    assert found["sources"]["pairs"]["loss"] == pytest.approx(np.mean(expected), rel=2e-6)
    assert found["streams"]["caption"] == found["sources"]["pairs"]


@pytest.mark.parametrize("sequences_together", [1, 8])
def test_no_more_sequences_are_read_than_asked_for(
    world, model, index, monkeypatch, sequences_together
):
    monkeypatch.setattr(
        "mm1_pipeline.evaluation.held_out.held_out._SEQUENCES_TOGETHER", sequences_together
    )
    counts = [
        stream_losses(model, world.shards, index, max_sequences)["sources"]["texts"]["n_tokens"]
        for max_sequences in (1, 2, 1000)
    ]
    assert 0 < counts[0] < 64 <= counts[1] < 128 < counts[2]


def test_the_report_has_every_set(world, model, tokenizer):
    tasks = [
        load_task(name, task, world.records, world.config.seed)
        for name, task in world.config.tasks.items()
    ]
    report = held_out_losses(model, world.config, world.shards, tasks, tokenizer)
    assert report.keys() == {"streams", "sources", "captions"}
    assert report["captions"].keys() == {"validation", "validation: pairs", "captions"}
    assert report["captions"]["captions"]["n"] == 8
    for values in report["captions"].values():
        for name in ("blank", "shuffled"):
            difference = values[f"{name}_minus_right"]
            assert difference["mean"] == pytest.approx(values[name] - values["right"], abs=2e-6)
            assert difference["low"] <= difference["mean"] <= difference["high"]
    json.dumps(report, allow_nan=False)


def test_task_captions_leave_out_failed_items(world, tokenizer, index):
    task = load_task("captions", world.config.tasks["captions"], world.records, 0)
    documents = task_captions(task, tokenizer, index, 5)
    assert [tokenizer.decode(document.input_ids.tolist()) for document in documents] == [
        f" {item.references[0]}" for item in task.items[:5]
    ]


def test_joined_sets_keep_every_caption():
    def losses(start: float, images: str) -> CaptionLosses:
        values = np.arange(len(images)) + start
        return CaptionLosses(values, values + 1, values + 2, tuple(images))

    joined = CaptionLosses.joined([losses(0, "ab"), losses(5, "cde")])
    summary = joined.summary(50, 0)
    assert summary["n"] == 5
    assert summary["right"] == pytest.approx((0 + 1 + 5 + 6 + 7) / 5)
    assert summary["blank_minus_right"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary["shuffled_minus_right"] == {"mean": 2.0, "low": 2.0, "high": 2.0}


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.integers(0, 100))
def test_another_image_is_never_the_same_image(images, seed):
    others = other_images(images, seed)
    if len(set(images)) < 2:
        assert others is None
        return
    assert others is not None
    assert len(others) == len(images)
    assert all(images[other] != image for image, other in zip(images, others, strict=True))
    assert others == other_images(images, seed)
