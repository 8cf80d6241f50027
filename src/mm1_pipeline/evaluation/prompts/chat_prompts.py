r"""Prompts of a fine-tuned model: conversations in the words of its training.

A worked example, one shot of an image of five sub-images, two tokens each:

    <bos> "User:" <img> x 10 " what is it?\nAnswer ... phrase.\nAssistant:" " a cat" <eos>
          "User:" <img> x 10 " what is it?\nAnswer ... phrase.\nAssistant:"

A shot is an earlier exchange of the conversation. Images stand before the words, or where question
and options name them (`interleaved`). `streams.conversations` turns prompts and
training conversations alike into tokens, and `streams.sub_images` cuts the images of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mm1_pipeline.config.conversation_prompts import (
    CHOICES,
    ONE_SENTENCE,
    OPTION_LETTER,
    SHORT_ANSWER,
)
from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.evaluation.prompts.prompts import (
    IMAGE,
    OPTIONS,
    Prompt,
    drawn_shots,
    item_parts,
    join_parts,
)
from mm1_pipeline.evaluation.prompts.resolution import (
    SubImageCounter,
    high_resolution,
    sub_image_keys,
    sub_images_per_example,
)
from mm1_pipeline.evaluation.tasks import Task, TaskItem
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.tokenizer import Tokenizer


class ChatPrompts:
    """Builds the prompts of one task.

    Args:
        task: Items, shots, images and the human's words.
        tokenizer: The one the model was trained with.
        index: Of the shards that the model was fine-tuned on: sub-images and their tokens.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, index: ShardIndex) -> None:
        self._task, self._tokenizer, self._index = task, tokenizer, index
        sub_images = high_resolution(task.config.resolution, index.sub_images)
        self._count_sub_images = SubImageCounter(task.images, index.image, sub_images)

    def build_all(self, num_shots: int, seed: int) -> list[Prompt]:
        """The prompts of all items that can be asked, in their order, set of shots by set.

        Raises:
            ValueError: The source has too few other examples to show.
        """
        return [
            self.build(item, shots, draw)
            for draw, item, shots in drawn_shots(self._task, num_shots, seed)
        ]

    def build(self, item: TaskItem, shots: Sequence[str], draw: int = 0) -> Prompt:
        """The prompt of one item.

        Source: MM1, mixed-resolution few-shot (the last N shots and the query stay high).

        Args:
            item: What is asked.
            shots: Keys of the items shown, in order.
            draw: Number of the set of shots.
        """
        task = self._task
        examples = [*(task.pool[key] for key in shots), item]
        per_example = sub_images_per_example(
            [example.images for example in examples], task.config.resolution, self._count_sub_images
        )
        segments: list[Segment] = []
        images: list[str] = []
        for example in examples:
            segments += self._turn(example, len(images))
            if example is not item:
                answer = example.shown_answer(task.config.metric)
                segments.append(Segment.of_text(answer, Role.ASSISTANT))
            images += example.images
        num_sub_images = [count for example in per_example for count in example]
        tokens = self._index.packing.image_tokens
        document = serialize_conversation(
            segments, self._tokenizer, tokens, num_sub_images=num_sub_images
        )
        content = json.dumps(
            [
                s.text if s.image is None else [images[s.image], num_sub_images[s.image]]
                for s in segments
            ],
            ensure_ascii=False,
        )
        return Prompt(
            key=item.key,
            shots=tuple(shots),
            content=content,
            sha256=hashlib.sha256(content.encode("utf-8")).hexdigest(),
            input_ids=document.input_ids,
            images=tuple(
                key
                for index in document.images
                for key in sub_image_keys(images[index], num_sub_images[index])
            ),
            num_sub_images=per_example,
            draw=draw,
        )

    def _turn(self, item: TaskItem, first_image: int) -> list[Segment]:
        """The human's turn: what is asked, after the item's images or with them in their places."""
        config = self._task.config
        template = config.chat_prompt or _default_template(config, item)
        if IMAGE not in template:
            template = f"{IMAGE}{template}"
        return [
            Segment.of_image(part, Role.HUMAN)
            if isinstance(part, int)
            else Segment.of_text(part, Role.HUMAN)
            for part in join_parts(item_parts(config, template, item, first_image))
            if isinstance(part, int) or part.strip()
        ]


def _default_template(task: TaskConfig, item: TaskItem) -> str:
    if task.metric == Metric.CIDER:
        return ONE_SENTENCE
    if item.options:
        return OPTION_LETTER.replace(CHOICES, OPTIONS)
    return SHORT_ANSWER
