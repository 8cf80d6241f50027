r"""Prompts of a fine-tuned model: conversations in the words of its training.

A worked example, one shot of an image of five squares, two tokens a square:

    <bos> "User:" <img> x 10 " what is it?\nAnswer ... phrase.\nAssistant:" " a cat" <eos>
          "User:" <img> x 10 " what is it?\nAnswer ... phrase.\nAssistant:"

A shot is an earlier exchange of the conversation. `streams.conversations` turns prompts and
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
    fill,
)
from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.corpus.images import check_image
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.evaluation.images import square_keys
from mm1_pipeline.evaluation.prompts import Prompt, drawn_shots
from mm1_pipeline.evaluation.tasks import Task, TaskItem, option_lines
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.sub_images import num_tiles
from mm1_pipeline.streams.tokenizer import Tokenizer


class ChatPrompts:
    """Builds the prompts of one task.

    Args:
        task: Items, shots, images and the human's words.
        tokenizer: The one the model was trained with.
        index: Of the shards that the model was fine-tuned on: squares and their tokens.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, index: ShardIndex) -> None:
        self._task, self._tokenizer, self._index = task, tokenizer, index
        self._tiles: dict[str, int] = {}

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
        segments: list[Segment] = []
        images: list[str] = []
        tiles: list[int] = []
        for place, example in enumerate(examples):
            segments += self._turn(example, len(images))
            if example is not item:
                answer = example.shown_answer(task.config.metric)
                segments.append(Segment.of_text(answer, Role.ASSISTANT))
            images += example.images
            is_high = self._is_high(len(shots) - place)
            tiles += [self._squares(image) if is_high else 1 for image in example.images]
        tokens = self._index.packing.image_tokens
        document = serialize_conversation(segments, self._tokenizer, tokens, tiles=tiles)
        content = json.dumps(
            [s.text if s.image is None else [images[s.image], tiles[s.image]] for s in segments],
            ensure_ascii=False,
        )
        squares = tuple(
            key for index in document.images for key in square_keys(images[index], tiles[index])
        )
        return Prompt(
            key=item.key,
            shots=tuple(shots),
            content=content,
            sha256=hashlib.sha256(content.encode("utf-8")).hexdigest(),
            input_ids=document.input_ids,
            images=squares,
            tiles=(1,) * len(squares),
            draw=draw,
        )

    def _turn(self, item: TaskItem, first_image: int) -> list[Segment]:
        """The human's turn: the item's images, then what is asked about them."""
        template = self._task.config.chat_prompt or _default_template(self._task.config, item)
        text = template.replace("{options}", option_lines(item.options))
        text = fill(text, item.question or "")
        places = range(first_image, first_image + len(item.images))
        images = [Segment.of_image(place, Role.HUMAN) for place in places]
        return [*images, Segment.of_text(text, Role.HUMAN)]

    def _is_high(self, shots_after: int) -> bool:
        """Whether an example with so many after it, the query counted, shows its crops."""
        resolution = self._task.config.resolution
        return resolution is None or shots_after <= resolution.num_high_shots

    def _squares(self, image: str) -> int:
        if image not in self._tiles:
            width, height = check_image(self._task.images[image])
            transform, sub_images = self._index.image, self._index.sub_images
            self._tiles[image] = num_tiles(width, height, transform, sub_images)
        return self._tiles[image]


def _default_template(task: TaskConfig, item: TaskItem) -> str:
    if task.metric == Metric.CIDER:
        return ONE_SENTENCE
    if item.options:
        return OPTION_LETTER.replace(CHOICES, "{options}")
    return SHORT_ANSWER
