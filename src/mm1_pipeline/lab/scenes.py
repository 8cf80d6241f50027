"""Scenes of the synthetic world: one shape, its place, and a word with a number below it.

Six attributes, each with few values, so that a tiny model can learn them and an answer is right
or wrong. Shapes are large, letters are small: what a model reads depends on its resolution.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mm1_pipeline.config.lab import Attribute

Point = tuple[float, float]
Colour = tuple[int, int, int]


COLOURS: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "orange": (245, 140, 30),
    "purple": (140, 60, 180),
    "pink": (245, 140, 190),
    "brown": (125, 80, 45),
}

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")

POSITIONS: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top right": (0, 2),
    "bottom left": (2, 0),
    "bottom right": (2, 2),
    "middle": (1, 1),
    "top": (0, 1),
    "left": (1, 0),
    "right": (1, 2),
    "bottom": (2, 1),
}
"""Row and column of nine cells; those that are easiest to tell apart come first."""

BACKGROUNDS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "grey": (150, 150, 150),
    "black": (15, 15, 15),
}

WORDS = (
    "cat", "dog", "sun", "map", "key", "box", "cup", "hat",
    "pen", "bus", "car", "egg", "fox", "jam", "owl", "zip",
)  # fmt: skip

NUMBERS = tuple(str(number) for number in range(10))

Values = Mapping[Attribute, tuple[str, ...]]
"""What each attribute of a world's scenes may be."""

VALUES: Values = {
    Attribute.COLOUR: tuple(COLOURS),
    Attribute.SHAPE: SHAPES,
    Attribute.POSITION: tuple(POSITIONS),
    Attribute.BACKGROUND: tuple(BACKGROUNDS),
    Attribute.WORD: WORDS,
    Attribute.NUMBER: NUMBERS,
}

_STRIP = 1 / 6
"""Height of the line of text, as a share of the canvas."""

_FONT = 1 / 8
"""Size of its font, as a share of the canvas; capitals are 0.7 of the size."""

_SHAPE = 0.32
"""Width of a shape, as a share of the canvas, before it varies by a tenth."""

_OVERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        values: Of each attribute.
        jitter: Shift right and down in cells, size, and shade; each in -1..1. No caption tells.
    """

    values: dict[Attribute, str]
    jitter: tuple[float, float, float, float]

    def __getitem__(self, attribute: Attribute) -> str:
        return self.values[attribute]


def first_values(num_values: Mapping[Attribute, int]) -> Values:
    """The first values of the attributes that are named, all values of the others.

    Raises:
        ValueError: An attribute has fewer values.
    """
    for name, count in num_values.items():
        if count > len(VALUES[name]):
            raise ValueError(
                f"world.num_values.{name}: found {count}, expected at most {len(VALUES[name])}."
            )
    return {name: found[: num_values.get(name)] for name, found in VALUES.items()}


def draw_scene(rng: np.random.Generator, values: Values) -> Scene:
    """A random scene; every value of an attribute is equally likely."""
    drawn = {name: str(rng.choice(found)) for name, found in values.items()}
    shift_x, shift_y, size, shade = rng.uniform(-1, 1, 4).tolist()
    return Scene(drawn, (shift_x, shift_y, size, shade))


def render(scene: Scene, canvas: int) -> bytes:
    """The scene as a PNG of canvas x canvas pixels; equal scenes give equal bytes."""
    side = canvas * _OVERSAMPLING
    background = BACKGROUNDS[scene[Attribute.BACKGROUND]]
    image = Image.new("RGB", (side, side), background)
    draw = ImageDraw.Draw(image)
    shift_x, shift_y, size, shade = scene.jitter
    row, column = POSITIONS[scene[Attribute.POSITION]]
    cell_width, cell_height = side / 3, side * (1 - _STRIP) / 3
    width = side * _SHAPE * (1 + 0.1 * size)
    free_x, free_y = (cell_width - width) / 2, (cell_height - width) / 2
    centre = (
        _inside((column + 0.5) * cell_width + shift_x * max(0.0, free_x), width, side),
        _inside((row + 0.5) * cell_height + shift_y * max(0.0, free_y), width, 3 * cell_height),
    )
    colour = _shaded(COLOURS[scene[Attribute.COLOUR]], shade)
    _draw_shape(draw, scene[Attribute.SHAPE], centre, width / 2, colour)
    image = image.resize((canvas, canvas), Image.Resampling.BOX)
    _write_text(image, f"{scene[Attribute.WORD]} {scene[Attribute.NUMBER]}", background)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _inside(place: float, width: float, end: float) -> float:
    """The place nearest to the wanted one at which nothing is cut off; shapes exceed a cell."""
    return min(max(place, width / 2), end - width / 2)


def caption(scene: Scene) -> str:
    """What a careful person writes."""
    return describe(scene.values)


def describe(values: dict[Attribute, str]) -> str:
    """A caption from those attributes that are given; `image` if there are none.

    Example: {colour: red, shape: circle, position: top left} is
    "a red circle at the top left".
    """
    shape = values.get(Attribute.SHAPE) or ("shape" if Attribute.COLOUR in values else "")
    colour = values.get(Attribute.COLOUR, "")
    parts = []
    if shape:
        named = f"{colour} {shape}".strip()
        parts.append(f"{'an' if named[0] in 'aeiou' else 'a'} {named}")
    if position := values.get(Attribute.POSITION):
        parts.append(f"{'in' if position == 'middle' else 'at'} the {position}")
    if background := values.get(Attribute.BACKGROUND):
        parts.append(f"on {background}")
    text = [values[name] for name in (Attribute.WORD, Attribute.NUMBER) if name in values]
    if text:
        parts.append(f"{'with ' if parts else ''}{' '.join(text)}")
    return " ".join(parts) or "image"


def alt_text(
    scene: Scene, rng: np.random.Generator, values: Values, drop: float, wrong: float
) -> str:
    """What the web writes: attributes left out, and wrong ones.

    Args:
        scene: What the image shows.
        rng: Decides what is left out.
        values: What may stand in place of the right ones.
        drop: Probability that an attribute is left out.
        wrong: Probability that another value stands in its place.
    """
    written = {}
    for name, value in scene.values.items():
        chance = rng.random()
        if chance < drop:
            continue
        if chance < drop + wrong:
            value = str(rng.choice([other for other in values[name] if other != value]))
        written[name] = value
    return describe(written)


def dense_caption(scene: Scene) -> str:
    """What a language model makes of an alt text and what it sees: everything, in sentences.

    Source: MM1, Data (VeCap; an LLM rewrites alt texts); deviation: a template stands for it.
    """
    shape = scene[Attribute.SHAPE]
    where = scene[Attribute.POSITION]
    return (
        f"{describe({n: scene[n] for n in (Attribute.COLOUR, Attribute.SHAPE)})} "
        f"on {scene[Attribute.BACKGROUND]}. "
        f"the {shape} is {'in' if where == 'middle' else 'at'} the {where}. "
        f"below it stands {scene[Attribute.WORD]} and the number {scene[Attribute.NUMBER]}."
    )


def _shaded(colour: Colour, shade: float) -> Colour:
    red, green, blue = (min(255, max(0, round(value + 12 * shade))) for value in colour)
    return red, green, blue


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, colour: Colour
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            draw.ellipse(box, fill=colour)
        case "square":
            draw.rectangle(box, fill=colour)
        case "cross":
            third = radius / 3
            draw.rectangle((x - radius, y - third, x + radius, y + third), fill=colour)
            draw.rectangle((x - third, y - radius, x + third, y + radius), fill=colour)
        case _:
            draw.polygon(_corners(shape, centre, radius), fill=colour)


def _corners(shape: str, centre: Point, radius: float) -> list[Point]:
    """Corners of a polygon, from the top, clockwise."""
    radii = {
        "triangle": [radius] * 3,
        "diamond": [radius] * 4,
        "star": [radius, 0.42 * radius] * 5,
    }[shape]
    step = 2 * math.pi / len(radii)
    return [
        (
            centre[0] + length * math.sin(index * step),
            centre[1] - length * math.cos(index * step),
        )
        for index, length in enumerate(radii)
    ]


def _write_text(image: Image.Image, text: str, background: Colour) -> None:
    """Writes small letters into the strip at the bottom, dark on light or light on dark."""
    side = image.width
    colour = (0, 0, 0) if sum(background) > 3 * 100 else (255, 255, 255)
    middle = (side / 2, side * (1 - _STRIP / 2))
    ImageDraw.Draw(image).text(middle, text, colour, font=_font(round(side * _FONT)), anchor="mm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no machine needs one."""
    return ImageFont.load_default(size)
