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
from mm1_pipeline.streams.sub_images import num_tiles

Tiles = tuple[tuple[int, ...], ...]
"""Squares of each image of each example of a prompt, the query last."""


class ImageSquares:
    """How many squares show an image at high resolution; each image is looked at once.

    Args:
        images: Encoded images by SHA-256.
        transform: How images become squares.
        sub_images: Which squares show a large image.
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
        """Squares of one image, by its SHA-256."""
        if self._sub_images.grid == 1:
            return 1
        if image not in self._known:
            width, height = check_image(self._images[image])
            self._known[image] = num_tiles(width, height, self._transform, self._sub_images)
        return self._known[image]


class _Prompt(Protocol):
    """What the budget reads of a prompt."""

    @property
    def tiles(self) -> Tiles: ...

    def __len__(self) -> int: ...


def high_resolution(
    resolution: MixedResolution | None, trained_with: SubImageConfig
) -> SubImageConfig:
    """The squares of an image at high resolution: a task's own, else those of the training."""
    if resolution is None or resolution.sub_images is None:
        return trained_with
    return resolution.sub_images


def tiles_per_example(
    images: Sequence[Sequence[str]],
    resolution: MixedResolution | None,
    squares: Callable[[str], int],
) -> Tiles:
    """Squares of each image: all it has in the last examples, one in those before.

    Args:
        images: SHA-256 of the images of each example, the query last.
        resolution: How many examples stay high; None keeps all.
        squares: Squares of an image at high resolution.
    """
    first_high = 0 if resolution is None else len(images) - 1 - resolution.num_high_shots
    return tuple(
        tuple(squares(image) if place >= first_high else 1 for image in example)
        for place, example in enumerate(images)
    )


def square_keys(image: str, count: int) -> list[str]:
    """Names of the squares that show an image; each is then an image to the model.

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
        image_tokens: Positions of one square.
        max_new_tokens: Positions of an answer.

    Raises:
        ValueError: If images, text and answer together take more than `max_positions`.
    """
    longest = max(prompts, key=len, default=None)
    if longest is None or len(longest) + max_new_tokens <= resolution.max_positions:
        return
    rest = len(longest) + max_new_tokens - image_tokens * _num_squares(longest.tiles)
    raise ValueError(
        f"tasks.{name}.resolution: found {len(longest.tiles) - 1} shots whose images take "
        f"{_formula(longest.tiles, image_tokens)} positions, beside {rest:,} of text and answer; "
        f"allowed are {resolution.max_positions:,} together. "
        f"{_what_fits(prompts, resolution, image_tokens, max_new_tokens)}"
    )


def _what_fits(
    prompts: Sequence[_Prompt], resolution: MixedResolution, image_tokens: int, max_new_tokens: int
) -> str:
    """The most shots that can stay high, else the most shots at all."""

    def needed(prompt: _Prompt, num_high: int) -> int:
        saved = _num_squares(prompt.tiles) - _num_squares(_lowered(prompt.tiles, num_high))
        return len(prompt) + max_new_tokens - image_tokens * saved

    room, num_shots = resolution.max_positions, len(prompts[0].tiles) - 1
    for num_high in reversed(range(min(num_shots, resolution.num_high_shots))):
        longest = max(prompts, key=lambda prompt: needed(prompt, num_high))
        if needed(longest, num_high) <= room:
            formula = _formula(_lowered(longest.tiles, num_high), image_tokens)
            return f"With num_high_shots: {num_high}, the images take {formula}, which fits."
    longest = max(prompts, key=lambda prompt: needed(prompt, 0))
    query = image_tokens * sum(longest.tiles[-1]) + max_new_tokens
    if num_shots == 0 or query > room:
        return "Not even the query alone fits."
    # Each shot takes its image's positions and those of its text, which are not counted here.
    most = num_shots - -(-(needed(longest, 0) - room) // image_tokens)
    if most < 1:
        return "Ask for fewer shots."
    return f"Even with num_high_shots: 0, at most {most} shots fit."


def _lowered(tiles: Tiles, num_high_shots: int) -> Tiles:
    """The squares with so many shots left high."""
    border = max(0, len(tiles) - 1 - num_high_shots)
    return tuple((1,) * len(example) for example in tiles[:border]) + tiles[border:]


def _num_squares(tiles: Tiles) -> int:
    return sum(map(sum, tiles))


def _formula(tiles: Tiles, image_tokens: int) -> str:
    """The sum as a person checks it: `5 x 144 + 4 x 720 = 3,600`."""
    counts = Counter(count for example in tiles for count in example)
    terms = (f"{number} x {image_tokens * count}" for count, number in sorted(counts.items()))
    return f"{' + '.join(terms)} = {image_tokens * _num_squares(tiles):,}"
