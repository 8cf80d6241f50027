"""Mixed-resolution few-shot: which images of a prompt stay high, and whether they fit.

Worked example, 144 positions an image at low and 720 at high resolution, 8 shots and the query:

    all high            9 x 720            = 6,480    does not fit 4,096
    last 3 + query high 5 x 144 + 4 x 720  = 3,600    fits

Documents and conversations follow the same rule.

Source: MM1, mixed-resolution few-shot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mm1_pipeline.config.evaluation import MixedResolution
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.corpus.images import check_image
from mm1_pipeline.streams.sub_images import count_sub_images

SubImageCounts = tuple[tuple[int, ...], ...]
"""Sub-images of each image of each example of a prompt, the query last."""


class SubImageCounter:
    """How many sub-images show an image at high resolution; each image is looked at once.

    Args:
        images: Encoded images by SHA-256.
        transform: How images become sub-images.
        sub_images: Which sub-images show a large image.
    """

    def __init__(
        self,
        images: Mapping[str, bytes],
        transform: ImageTransform,
        sub_images: SubImageConfig,
    ) -> None:
        self._images, self._transform, self._sub_images = images, transform, sub_images
        self._known: dict[str, int] = {}

    def __call__(self, image: str) -> int:
        """Sub-images of one image, by its SHA-256."""
        if self._sub_images.grid == 1:
            return 1
        if image not in self._known:
            width, height = check_image(self._images[image])
            self._known[image] = count_sub_images(width, height, self._transform, self._sub_images)
        return self._known[image]


class _Prompt(Protocol):
    """What the budget reads of a prompt."""

    @property
    def num_sub_images(self) -> SubImageCounts: ...

    def __len__(self) -> int: ...


def high_resolution(
    resolution: MixedResolution | None, trained_with: SubImageConfig
) -> SubImageConfig:
    """The sub-images of an image at high resolution: a task's own, else those of the training."""
    if resolution is None or resolution.sub_images is None:
        return trained_with
    return resolution.sub_images


def sub_images_per_example(
    images: Sequence[Sequence[str]],
    resolution: MixedResolution | None,
    count: Callable[[str], int],
) -> SubImageCounts:
    """Sub-images of each image: all it has in the last examples, one in those before.

    Args:
        images: SHA-256 of the images of each example, the query last.
        resolution: Which examples stay high; None keeps all.
        count: Sub-images of an image at high resolution.
    """
    first_high, most = 0, None
    if resolution is not None:
        first_high, most = len(images) - 1 - resolution.num_high_shots, resolution.max_high_images
    return tuple(
        tuple(count(image) for image in example)
        if place >= first_high and (most is None or len(example) <= most)
        else (1,) * len(example)
        for place, example in enumerate(images)
    )


def sub_image_keys(image: str, count: int) -> list[str]:
    """Names of the sub-images of an image; each is then an image to the model.

    Args:
        image: SHA-256 of the encoded image.
        count: 1 is the overview alone, which has the image's own name.
    """
    return [image, *(f"{image}/{place}" for place in range(1, count))]


def check_budget(
    name: str,
    prompts: Sequence[_Prompt],
    resolution: MixedResolution,
    image_tokens: int,
    max_new_tokens: int,
) -> None:
    """Refuses a number of shots whose images do not fit, and names what does.

    Args:
        name: Name of the task.
        prompts: All prompts with this number of shots.
        resolution: The task's.
        image_tokens: Positions of one sub-image.
        max_new_tokens: Positions of an answer.

    Raises:
        ValueError: If images, text and answer together take more than `max_positions`.
    """
    longest = max(prompts, key=len, default=None)
    if longest is None or len(longest) + max_new_tokens <= resolution.max_positions:
        return
    rest = len(longest) + max_new_tokens - image_tokens * _total(longest.num_sub_images)
    raise ValueError(
        f"tasks.{name}.resolution: found {len(longest.num_sub_images) - 1} shots whose images take "
        f"{formula(longest.num_sub_images, image_tokens)} positions, beside {rest:,} of text and "
        f"answer; allowed are {resolution.max_positions:,} together. "
        f"{_what_fits(prompts, resolution, image_tokens, max_new_tokens)}"
    )


def _what_fits(
    prompts: Sequence[_Prompt], resolution: MixedResolution, image_tokens: int, max_new_tokens: int
) -> str:
    """The most shots that can stay high, else the most shots at all."""

    def needed(prompt: _Prompt, num_high: int) -> int:
        saved = _total(prompt.num_sub_images) - _total(_lowered(prompt.num_sub_images, num_high))
        return len(prompt) + max_new_tokens - image_tokens * saved

    room, num_shots = resolution.max_positions, len(prompts[0].num_sub_images) - 1
    for num_high in reversed(range(min(num_shots, resolution.num_high_shots))):
        longest = max(prompts, key=lambda prompt: needed(prompt, num_high))
        if needed(longest, num_high) <= room:
            found = formula(_lowered(longest.num_sub_images, num_high), image_tokens)
            return f"With num_high_shots: {num_high}, the images take {found}, which fits."
    longest = max(prompts, key=lambda prompt: needed(prompt, 0))
    query = image_tokens * sum(longest.num_sub_images[-1]) + max_new_tokens
    if num_shots == 0 or query > room:
        return "Not even the query alone fits."
    # Each shot takes its image's positions and those of its text, which are not counted here.
    most = num_shots - -(-(needed(longest, 0) - room) // image_tokens)
    if most < 1:
        return "Ask for fewer shots."
    return f"Even with num_high_shots: 0, at most {most} shots fit."


def _lowered(num_sub_images: SubImageCounts, num_high_shots: int) -> SubImageCounts:
    """The sub-images with so many shots left high."""
    border = max(0, len(num_sub_images) - 1 - num_high_shots)
    return (
        tuple((1,) * len(example) for example in num_sub_images[:border]) + num_sub_images[border:]
    )


def _total(num_sub_images: SubImageCounts) -> int:
    return sum(map(sum, num_sub_images))


def formula(num_sub_images: SubImageCounts, image_tokens: int) -> str:
    """Positions of the images, as a person checks the sum: `5 x 144 + 4 x 720 = 3,600`."""
    counts = Counter(count for example in num_sub_images for count in example)
    terms = (f"{number} x {image_tokens * count}" for count, number in sorted(counts.items()))
    return f"{' + '.join(terms)} = {image_tokens * _total(num_sub_images):,}"
