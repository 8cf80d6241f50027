"""Pictures: drawn from SVG, put on backgrounds, composed, measured, stored without loss."""

from __future__ import annotations

import io
import random
from functools import cache

import numpy as np
import resvg_py
from concepts import Concept, hash_of
from PIL import Image

SIDE = 64
"""Pixels of a picture that shows one thing."""
MARGIN = 2
WHITE = ("white", (255, 255, 255))
PALE = (
    ("pale blue", (214, 234, 250)),
    ("pale green", (217, 242, 217)),
    ("pale yellow", (253, 246, 205)),
    ("pale pink", (251, 222, 231)),
    ("light grey", (226, 226, 226)),
)
"""Names and colours of backgrounds."""
WHITE_SHARE = 0.6

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white",
)  # fmt: skip
OPPOSITES = {"red": "green", "orange": "blue", "yellow": "purple", "black": "white"}
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}
CLEAR_SHARE = 0.6
"""Part of a drawing from which on one colour is its colour."""
SECOND_SHARE = 0.2
"""Part from which on a second colour is worth naming."""
OUTLINE_SHARE = 0.5
"""Up to which black is the outline of a drawing, or its shadow, not its colour."""


def render(svg: str, side: int) -> Image.Image:
    """The drawing, as large as fits, transparent around."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return canvas


@cache
def drawing(svg: str, side: int) -> Image.Image:
    """What the drawing itself fills of its square, enlarged to `side`.

    Styles leave margins of different widths around their drawings; without them a style could be
    told by its margin, and things are as large as they can be.
    """
    rough = render(svg, 2 * SIDE)
    box = rough.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        raise ValueError("found a drawing without a pixel")
    shown = max(box[2] - box[0], box[3] - box[1])
    exact = render(svg, round(2 * SIDE * side / shown))
    scale = exact.width / rough.width
    left = round((box[0] + box[2]) / 2 * scale - side / 2)
    top = round((box[1] + box[3]) / 2 * scale - side / 2)
    return exact.crop((left, top, left + side, top + side))


def background(*names: str) -> tuple[str, tuple[int, int, int]]:
    """White or a pale colour, by the names of what stands on it."""
    number = hash_of("background", *names)
    if number % 1000 < 1000 * WHITE_SHARE:
        return WHITE
    return PALE[number // 1000 % len(PALE)]


def single(concept: Concept, style: str) -> Image.Image:
    """The picture of one thing as captions have it: as large as it can be."""
    canvas = Image.new("RGB", (SIDE, SIDE), background(style, concept.code_points)[1])
    drawn = drawing(concept.drawings[style], SIDE - 2 * MARGIN)
    canvas.paste(drawn, (MARGIN, MARGIN), drawn)
    return canvas


def varied(concept: Concept, style: str) -> Image.Image:
    """The same drawing smaller, elsewhere, on another background."""
    rng = random.Random(f"varied/{style}/{concept.code_points}")
    canvas = Image.new("RGB", (SIDE, SIDE), background("varied", style, concept.code_points)[1])
    side = rng.randint(44, SIDE - 6)
    drawn = drawing(concept.drawings[style], side)
    canvas.paste(drawn, (rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)), drawn)
    return canvas


def composed(
    shown: list[tuple[Concept, str] | None], cell: int, rng: random.Random, *, jitter: int = 0
) -> Image.Image:
    """Up to four pictures in the four quarters of one; None leaves a quarter empty.

    Args:
        shown: Of each quarter, concept and style: top left, top right, bottom left, bottom right.
        cell: Pixels of a quarter's side.
        rng: Chooses background and, with `jitter`, how far a drawing is from its place.
        jitter: Most pixels of that, each way.
    """
    colour = rng.choice((WHITE, WHITE, *PALE))[1]
    canvas = Image.new("RGB", (2 * cell, 2 * cell), colour)
    side = cell - 2 * MARGIN - 2 * jitter
    for place, one in enumerate(shown):
        if one is None:
            continue
        drawn = drawing(one[0].drawings[one[1]], side)
        offsets = [MARGIN + jitter + rng.randint(-jitter, jitter) for _ in range(2)]
        corner = (place % 2 * cell + offsets[0], place // 2 * cell + offsets[1])
        canvas.paste(drawn, corner, drawn)
    return canvas


def encode(image: Image.Image) -> bytes:
    """WebP without loss: half of what an optimised PNG takes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def colours(concept: Concept, style: str) -> tuple[str | None, str | None]:
    """The colour of a drawing, measured from its pixels, and a second one.

    Returns:
        The first is None where no colour fills `CLEAR_SHARE` of the drawing, the second where none
        beside it fills `SECOND_SHARE`.
    """
    shares = _colour_shares(concept.drawings[style])
    ordered = sorted(shares, key=lambda name: (-shares[name], name))
    main = ordered[0] if shares[ordered[0]] >= CLEAR_SHARE else None
    second = ordered[1] if len(ordered) > 1 and shares[ordered[1]] >= SECOND_SHARE else None
    return main, second


def named_colours(concept: Concept, style: str) -> list[str]:
    """One to three colours, the largest first."""
    shares = _colour_shares(concept.drawings[style])
    ordered = sorted(shares, key=lambda name: (-shares[name], name))
    return [n for i, n in enumerate(ordered[:3]) if i == 0 or shares[n] >= SECOND_SHARE]


@cache
def _colour_shares(svg: str) -> dict[str, float]:
    pixels = np.asarray(drawing(svg, SIDE - 2 * MARGIN)).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] > 200]
    names = [_colour_name(*map(int, rgb)) for rgb in pixels[:, :3]]
    shares = {name: names.count(name) / len(names) for name in COLOURS if name in names}
    if 0 < shares.get("black", 0) < OUTLINE_SHARE and len(shares) > 1:
        rest = 1 - shares.pop("black")
        shares = {name: share / rest for name, share in shares.items()}
    return shares


def _colour_name(red: int, green: int, blue: int) -> str:
    """Which of `COLOURS` people would call a colour; the limits are ours."""
    high, low = max(red, green, blue), min(red, green, blue)
    value, chroma = high / 255, (high - low) / 255
    saturation = chroma / value if value else 0
    if value < 0.28:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.88 else "grey" if value > 0.35 else "black"
    if high == red:
        hue = 60 * ((green - blue) / (high - low)) % 360
    elif high == green:
        hue = 60 * ((blue - red) / (high - low) + 2)
    else:
        hue = 60 * ((red - green) / (high - low) + 4)
    if hue < 16 or hue >= 345:
        if value < 0.55 and hue < 16:
            return "brown"
        return "pink" if saturation < 0.5 and value > 0.75 else "red"
    if hue < 44:
        if value < 0.72 or (saturation < 0.55 and value < 0.9):
            return "brown"
        return "orange" if hue < 36 or saturation < 0.6 else "yellow"
    if hue < 70:
        return "yellow" if value > 0.6 else "brown"
    if hue < 168:
        return "green"
    if hue < 252:
        return "blue"
    if hue < 300:
        return "purple"
    return "purple" if value < 0.6 else "pink"
