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
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mm1_pipeline.config.evaluation import TaskConfig
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.evaluation.prompts.resolution import (
    SubImageCounts,
    sub_image_keys,
    sub_images_per_example,
)
from mm1_pipeline.evaluation.prompts.shots import ShotPool
from mm1_pipeline.evaluation.tasks import FilePool, Task, TaskItem, option_lines
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer

IMAGE, QUESTION, OPTIONS = "{image}", "{question}", "{options}"

_SLOT = re.compile(r"(\{image\}|\{question\}|\{options\})")
_NAMED_IMAGE = re.compile(r"<image (\d+)>")


@dataclass(frozen=True)
class Prompt:
    """What a model is given for one item.

    Attributes:
        key: The item's key.
        draw: Number of the set of shots.
        shots: Keys of the items shown, in order.
        content: The prompt as JSON: texts, and images by SHA-256.
        sha256: Of `content`.
        input_ids: int32[length], image tokens at the images' places.
        images: Sub-images of the images in order (`sub_image_keys`); each takes the same
            positions.
        num_sub_images: Sub-images of each image of each example, the query last.
    """

    key: str
    shots: tuple[str, ...]
    content: str
    sha256: str
    input_ids: np.ndarray
    images: tuple[str, ...]
    num_sub_images: SubImageCounts = ()
    draw: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


def item_segments(
    config: TaskConfig, item: TaskItem, first_image: int, answer: str | None
) -> list[Segment]:
    """One example as segments: the filled template and, for a shot, the answer after a space.

    Args:
        config: Gives the template with `{image}`, `{question}` and `{options}`.
        item: What the slots are filled with. All its images stand at `{image}`; if the task is
            interleaved, those that question or options name stand where they are named.
        first_image: Index of the item's first image.
        answer: The answer a shot shows; None leaves the example open.
    """
    template = config.prompt
    if config.open_prompt and not item.options:
        template = config.open_prompt
    return _to_segments(item_parts(config, template, item, first_image), answer)


def item_parts(
    config: TaskConfig, template: str, item: TaskItem, first_image: int
) -> list[str | int]:
    """A template filled with an item: texts, and indices of images where they stand.

    Args:
        config: Says whether question and options name the places of their images.
        template: Has `{image}`; see `item_segments`.
        item: What the slots are filled with.
        first_image: Index of the item's first image.
    """
    images = list(range(first_image, first_image + len(item.images)))
    return _fill(
        template, images, item.question or "", item.options, interleaved=config.interleaved
    )


def _fill(
    template: str,
    images: Sequence[int],
    question: str,
    options: Sequence[str],
    *,
    interleaved: bool,
) -> list[str | int]:
    """Texts and image indices in reading order; what fills a slot is never a slot itself."""
    if not options:
        template = template.replace(f"\n{OPTIONS}", "").replace(OPTIONS, "")
    lines = option_lines(options)
    named = {
        int(number)
        for number in _NAMED_IMAGE.findall(question + lines)
        if interleaved and 0 < int(number) <= len(images)
    }
    parts: list[str | int] = []
    for piece in _SLOT.split(template):
        if piece == IMAGE:
            parts += [image for place, image in enumerate(images, 1) if place not in named]
        elif piece in (QUESTION, OPTIONS):
            text = question if piece == QUESTION else lines
            parts += _with_images(text, images, named) if named else [text]
        else:
            parts.append(piece)
    return parts


def _with_images(text: str, images: Sequence[int], named: set[int]) -> list[str | int]:
    """A text with images at the places it names; a second mention stays text."""
    parts: list[str | int] = []
    end = 0
    for match in _NAMED_IMAGE.finditer(text):
        number = int(match[1])
        if number in named:
            parts += [text[end : match.start()], images[number - 1]]
            end = match.end()
            named.discard(number)
    return [*parts, text[end:]]


def _to_segments(parts: Iterable[str | int], answer: str | None) -> list[Segment]:
    """Segments with neighbouring texts joined, and the answer after the last text."""
    joined = join_parts(parts)
    if answer is not None:
        joined[-1] = f"{str(joined[-1]).rstrip()} {answer}"
    return [
        Segment.of_image(part) if isinstance(part, int) else Segment.of_text(part)
        for part in joined
        if isinstance(part, int) or part.strip()
    ]


def join_parts(parts: Iterable[str | int]) -> list[str | int]:
    """Parts with neighbouring texts joined: text, image, text, ..., where texts may be empty."""
    joined: list[str | int] = [""]
    for part in parts:
        if isinstance(part, int):
            joined += [part, ""]
        else:
            joined[-1] = f"{joined[-1]}{part}"
    return joined


def one_sub_image(_image: str) -> int:
    """An image is shown whole."""
    return 1


def build_prompt(
    task: Task,
    item: TaskItem,
    shots: Sequence[str],
    tokenizer: Tokenizer,
    image_tokens: int,
    draw: int = 0,
    count_sub_images: Callable[[str], int] = one_sub_image,
) -> Prompt:
    """Builds the prompt of one item.

    Args:
        task: Gives template, metric and the items behind the shots.
        item: What is asked.
        shots: Keys of the items shown, in order.
        tokenizer: Encodes the text.
        image_tokens: Positions one sub-image of an image takes.
        draw: Number of the set of shots.
        count_sub_images: Sub-images of an image at high resolution.
    """
    examples = [*(task.pool[key] for key in shots), item]
    per_example = sub_images_per_example(
        [e.images for e in examples], task.config.resolution, count_sub_images
    )
    segments: list[Segment] = []
    images: list[str] = []
    for example in examples:
        answer = None if example is item else example.shown_answer(task.config.metric)
        segments += item_segments(task.config, example, len(images), answer)
        images += example.images
    num_sub_images = [count for example in per_example for count in example]
    # An image that is shown whole is named alone, so digests do not hang on this choice.
    shown = [
        image if count == 1 else [image, count]
        for image, count in zip(images, num_sub_images, strict=True)
    ]
    content = json.dumps(
        [shown[s.image] if s.image is not None else s.text for s in segments], ensure_ascii=False
    )
    document = serialize(
        segments, tokenizer, image_tokens, num_sub_images=num_sub_images, end=False
    )
    return Prompt(
        key=item.key,
        shots=tuple(shots),
        content=content,
        sha256=_sha256(content),
        input_ids=document.input_ids,
        images=tuple(
            key
            for index in document.images
            for key in sub_image_keys(images[index], num_sub_images[index])
        ),
        num_sub_images=per_example,
        draw=draw,
    )


def build_prompts(
    task: Task,
    num_shots: int,
    seed: int,
    tokenizer: Tokenizer,
    image_tokens: int,
    count_sub_images: Callable[[str], int] = one_sub_image,
) -> list[Prompt]:
    """Builds the prompts of all items that can be asked, in their order, set of shots by set.

    Args:
        task: Items, examples and template.
        num_shots: Examples before the question, from 0.
        seed: Same seed, same shots.
        tokenizer: Encodes the text.
        image_tokens: Positions one sub-image of an image takes.
        count_sub_images: Sub-images of an image at high resolution, as in training.

    Raises:
        ValueError: If the source has too few other examples to show.
    """
    return [
        build_prompt(task, item, shots, tokenizer, image_tokens, draw, count_sub_images)
        for draw, item, shots in drawn_shots(task, num_shots, seed)
    ]


def drawn_shots(
    task: Task, num_shots: int, seed: int
) -> Iterator[tuple[int, TaskItem, tuple[str, ...]]]:
    """Each item that can be asked with keys of its shots, for each set of shots.

    Args:
        task: Items, pool and number of sets; without shots, there is one.
        num_shots: Examples before the question, from 0.
        seed: Same seed, same shots.
    """
    pool = shot_pool(task, seed)
    for draw in range(task.config.num_shot_draws if num_shots else 1):
        for item in task.items:
            if item.failure is None:
                yield draw, item, pool.draw(item.key, item.images, num_shots, draw)


def shot_pool(task: Task, seed: int) -> ShotPool:
    """The examples that prompts of a task may show.

    Images of examples out of files are read when an example is drawn, and compared by content
    then: a training split may hold the query's image under another name.
    """
    draw = task.config.shot_draw
    if not isinstance(task.pool, FilePool):
        images = {key: item.images for key, item in task.pool.items()}
        return ShotPool(task.name, images, seed, draw)

    def content(key: str) -> tuple[str, ...] | None:
        example = task.pool[key]
        return None if example.failure is not None else example.images

    return ShotPool(task.name, dict.fromkeys(task.pool, ()), seed, draw, content)


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
