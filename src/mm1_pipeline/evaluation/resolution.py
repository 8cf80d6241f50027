"""Mixed-resolution few-shot: which images of a prompt stay high, and whether they fit.

Worked example, 144 positions an image at low and 720 at high resolution, 8 shots and the query:

    all high            9 x 720            = 6,480    does not fit 4,096
    last 3 + query high 5 x 144 + 4 x 720  = 3,600    fits

Source: MM1, mixed-resolution few-shot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mm1_pipeline.config.evaluation import MixedResolution


class Budget(NamedTuple):
    """Positions that the images of a prompt take."""

    num_low: int
    """Images at low resolution, one square each."""
    num_high: int
    positions: int

    def formula(self, low: int, high: int) -> str:
        """The sum as a person checks it: `5 x 144 + 4 x 720 = 3,600`."""
        parts = [
            f"{count} x {tokens}"
            for count, tokens in ((self.num_low, low), (self.num_high, high))
            if count
        ]
        return f"{' + '.join(parts)} = {self.positions:,}"


def image_budget(num_shots: int, resolution: MixedResolution, image_tokens: int) -> Budget:
    """Positions of the images of a prompt with one image an example.

    Args:
        num_shots: Examples before the query.
        resolution: How many of them stay high.
        image_tokens: Positions of one square.
    """
    num_high = min(num_shots, resolution.num_high_shots) + 1
    num_low = num_shots + 1 - num_high
    squares = num_low + num_high * resolution.high_tiles
    return Budget(num_low, num_high, squares * image_tokens)


def tiles_per_example(num_shots: int, resolution: MixedResolution | None) -> tuple[int, ...]:
    """Squares of an image of each example, the query last; None gives each one square."""
    if resolution is None:
        return (1,) * (num_shots + 1)
    num_high = min(num_shots, resolution.num_high_shots) + 1
    return (1,) * (num_shots + 1 - num_high) + (resolution.high_tiles,) * num_high


def check_budget(
    name: str, num_shots: int, resolution: MixedResolution, image_tokens: int, num_rest: int
) -> None:
    """Refuses a number of shots whose images do not fit, and names what does.

    Args:
        name: Name of the task.
        num_shots: Shots that are asked for.
        resolution: The task's.
        image_tokens: Positions of one square.
        num_rest: Positions of the longest prompt's text and answer.

    Raises:
        ValueError: If images, text and answer together take more than `max_positions`.
    """
    budget = image_budget(num_shots, resolution, image_tokens)
    if budget.positions + num_rest <= resolution.max_positions:
        return
    formula = budget.formula(image_tokens, image_tokens * resolution.high_tiles)
    raise ValueError(
        f"tasks.{name}.resolution: found {num_shots} shots whose images take {formula} positions, "
        f"beside {num_rest:,} of text and answer; allowed are {resolution.max_positions:,} "
        f"together. {_what_fits(num_shots, resolution, image_tokens, num_rest)}"
    )


def _what_fits(
    num_shots: int, resolution: MixedResolution, image_tokens: int, num_rest: int
) -> str:
    """The most shots that can stay high, else the most shots at all."""
    low, high = image_tokens, image_tokens * resolution.high_tiles
    room = resolution.max_positions - num_rest
    spare = room - (num_shots * low + high)
    if spare >= 0:
        num_high = min(num_shots, spare // (high - low))
        fitting = image_budget(
            num_shots, replace(resolution, num_high_shots=num_high), image_tokens
        )
        return (
            f"With num_high_shots: {num_high}, the images take {fitting.formula(low, high)}, "
            "which fits."
        )
    most = (room - high) // low
    if most < 0:
        return "Not even the query alone fits."
    return f"Even with num_high_shots: 0, at most {most} shots fit."
