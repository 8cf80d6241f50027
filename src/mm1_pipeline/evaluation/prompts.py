r"""Few-shot prompts: solved examples, then the question, in the words of training documents.

A worked example, one shot and `{image} Question: {question} Short answer:`, two tokens an image:

    <bos> <img> <img> " Question: what is it? Short answer: a cat" "\\n"
          <img> <img> " Question: what is it? Short answer:"

The model goes on after the last colon. `streams.serialization` turns prompts and training
documents alike into tokens, so a prompt is the beginning of a document of the same text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.evaluation.shots import ShotPool
from mm1_pipeline.evaluation.tasks import Task, TaskItem
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer

IMAGE, QUESTION = "{image}", "{question}"


@dataclass(frozen=True)
class Prompt:
    """What a model is given for one item.

    Attributes:
        key: The item's key.
        shots: Keys of the items shown, in order.
        content: The prompt as JSON: texts, and images by SHA-256.
        sha256: Of `content`.
        input_ids: int32[length], image tokens at the images' places.
        images: SHA-256 of each image in order.
    """

    key: str
    shots: tuple[str, ...]
    content: str
    sha256: str
    input_ids: np.ndarray
    images: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def example_segments(
    template: str, image: int, question: str | None, answer: str | None
) -> list[Segment]:
    """One example as segments: the filled template and, for a shot, the answer after a space.

    Args:
        template: Text with `{image}` and, for questions, `{question}`.
        image: Index of the image.
        question: What is asked; None if the template asks nothing.
        answer: The answer a shot shows; None leaves the example open.
    """
    before, after = (part.replace(QUESTION, question or "") for part in template.split(IMAGE))
    if answer is not None:
        after = f"{after.rstrip()} {answer}"
    segments = [Segment.of_text(before), Segment.of_image(image), Segment.of_text(after)]
    return [segment for segment in segments if segment.text is None or segment.text.strip()]


def build_prompt(
    task: Task, item: TaskItem, shots: Sequence[str], tokenizer: Tokenizer, image_tokens: int
) -> Prompt:
    """Builds the prompt of one item.

    Args:
        task: Gives template, metric and the items behind the shots.
        item: What is asked.
        shots: Keys of the items shown, in order.
        tokenizer: Encodes the text.
        image_tokens: Positions one image takes.
    """
    template = task.config.prompt
    segments: list[Segment] = []
    for index, key in enumerate(shots):
        shot = task.pool[key]
        answer = shot.shown_answer(task.config.metric)
        segments += example_segments(template, index, shot.question, answer)
    segments += example_segments(template, len(shots), item.question, None)
    images = (*(task.pool[key].image for key in shots), item.image)
    content = json.dumps(
        [images[s.image] if s.image is not None else s.text for s in segments], ensure_ascii=False
    )
    document = serialize(segments, tokenizer, image_tokens, end=False)
    return Prompt(
        key=item.key,
        shots=tuple(shots),
        content=content,
        sha256=_sha256(content),
        input_ids=document.input_ids,
        images=tuple(images[index] for index in document.images),
    )


def build_prompts(
    task: Task, num_shots: int, seed: int, tokenizer: Tokenizer, image_tokens: int
) -> list[Prompt]:
    """Builds the prompts of all items that can be asked, in their order.

    Raises:
        ValueError: If the source has too few other examples to show.
    """
    images = {key: [item.image] for key, item in task.pool.items()}
    pool = ShotPool(task.name, images, seed, task.config.shot_draw)
    return [
        build_prompt(
            task, item, pool.draw(item.key, [item.image], num_shots), tokenizer, image_tokens
        )
        for item in task.items
        if item.failure is None
    ]


def check_lengths(prompts: Iterable[Prompt], max_new_tokens: int, max_positions: int) -> int:
    """Refuses prompts that do not fit the key-value cache.

    Args:
        prompts: Of one task and number of shots.
        max_new_tokens: Tokens that may follow a prompt.
        max_positions: The limit on both together.

    Returns:
        Positions of the longest prompt with its answer; 0 without prompts.

    Raises:
        ValueError: If a prompt with its answer is longer than the limit.
    """
    longest = max(prompts, key=len, default=None)
    if longest is None:
        return 0
    needed = len(longest) + max_new_tokens
    if needed > max_positions:
        raise ValueError(
            f"max_positions: found {max_positions}, but the prompt of item {longest.key!r} with "
            f"{len(longest.shots)} shots takes {len(longest)} positions and its answer up to "
            f"{max_new_tokens}; raise evaluate.max_positions to at least {needed} or ask for "
            "fewer shots."
        )
    return needed


def prompts_sha256(prompts: Mapping[tuple[str, int], Sequence[Prompt]]) -> str:
    """Digest of every prompt's task, shots, item and content.

    Texts, not tokens: models with different tokenizers, asked the same, have the same digest.

    Args:
        prompts: By task and number of shots.
    """
    lines = (
        json.dumps([task, num_shots, prompt.key, prompt.shots, prompt.content])
        for (task, num_shots), group in sorted(prompts.items())
        for prompt in group
    )
    return _sha256("\n".join(lines))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
