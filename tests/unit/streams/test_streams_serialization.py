"""One rule from segments to tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer

text, image = Segment.of_text, Segment.of_image


def shown(tokenizer: Tokenizer, segments: list[Segment], **options: Any) -> str:
    """The tokens as text, with B, E and # for BOS, EOS and an image token."""
    marks = {tokenizer.bos_id: "B", tokenizer.eos_id: "E", tokenizer.image_id: "#"}
    ids = serialize(segments, tokenizer, 2, **options).input_ids.tolist()
    return "".join(marks[id_] if id_ in marks else tokenizer.decode([id_]) for id_ in ids)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([image(0), text(" a red dog. ")], "B## a red dog.E"),
        ([text("see"), image(0), text("dog"), image(1), image(2)], "Bsee\n## dog\n####E"),
        ([text("one"), text(" two\n"), text("three")], "Bone\ntwo\nthreeE"),
        ([text(" \n"), image(0), text(""), text("dog")], "B## dogE"),
        ([image(0), text(" "), image(1)], "B####E"),
        ([], "BE"),
    ],
)
def test_the_rule(tokenizer: Tokenizer, segments: list[Segment], expected: str) -> None:
    assert shown(tokenizer, segments) == expected


def test_a_prompt_is_the_beginning_of_a_document(tokenizer: Tokenizer) -> None:
    example = [image(0), text("a red dog")]
    prompt = [*example, image(1)]
    document = [*prompt, text("a blue cat")]
    begun = serialize(prompt, tokenizer, 4, end=False)
    whole = serialize(document, tokenizer, 4)
    assert whole.input_ids[: len(begun.input_ids)].tolist() == begun.input_ids.tolist()
    assert shown(tokenizer, prompt, begin=False, end=False) == "## a red dog\n##"


def test_text_and_the_end_are_targets(tokenizer: Tokenizer) -> None:
    document = serialize([text("see"), image(5), text("dog")], tokenizer, 3)
    specials = {tokenizer.bos_id, tokenizer.image_id}
    expected = [id_ not in specials for id_ in document.input_ids.tolist()]
    assert document.loss_mask.tolist() == expected
    assert document.loss_mask[-1]
    assert document.images == [5]
    assert document.input_ids.dtype == np.int32


def test_an_unknown_segment_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="type 'video'"):
        serialize([Segment("video")], tokenizer, 2)  # pyright: ignore[reportArgumentType]
