"""What can be said of an image, and without a model: colours, shape, separate regions.

These are measurements of pixels, named plainly. They know no objects; a model's own caption
(`evaluation.captioning.local_models`), the text in the image (`text_reader`) or an endpoint that
sees images says more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import RecordImage
from mm1_pipeline.ground.rejects import Rejected, printable

_SIDE = 64
"""Images are reduced to this before they are measured."""
_PALETTE = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (215, 30, 35),
    "orange": (250, 145, 20),
    "yellow": (250, 225, 50),
    "green": (40, 150, 60),
    "blue": (40, 85, 200),
    "light blue": (135, 200, 235),
    "purple": (125, 50, 160),
    "pink": (245, 160, 190),
    "brown": (125, 75, 35),
}
"""The basic colour terms and light blue, as sRGB."""
_MIN_COLOUR_SHARE = 0.02
_MAX_COLOURS = 3
_MIN_REGION_SHARE = 0.01
_MAX_REGIONS = 9
_WIDE = 1.25
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class ConceptSource(Protocol):
    """Says something of images."""

    @property
    def names(self) -> Collection[str]:
        """The concepts that it tells."""
        ...

    @property
    def provenance(self) -> dict[str, Any] | None:
        """Everything that its words depend on besides the image: what stands in each record, and
        by which they are kept for a rerun. None for what is told anew each time.
        """
        ...

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        """A phrase by name for each image, without those of which there is nothing to say."""
        ...


class MeasuredConcepts:
    """What the pixels say; see `detect_concepts`.

    Args:
        names: Among KNOWN.
    """

    KNOWN: ClassVar = ("colours", "shape", "regions")
    provenance = None

    def __init__(self, names: Collection[str] = KNOWN) -> None:
        self.names = names

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        """All of the names for every image that can be opened."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RecordImage) -> dict[str, str] | Rejected:
        try:
            return detect_concepts(open_image(image.bytes), self.names)
        except Rejected as error:
            return error


def one_line(text: str, max_characters: int | None = None) -> str:
    """A text of others as a phrase: on one line, without surrogates, cut between words."""
    words = printable(" ".join(text.split()))
    if max_characters is None or len(words) <= max_characters:
        return words
    return words[: max_characters + 1].rpartition(" ")[0] or words[:max_characters]


def detect_concepts(image: Image.Image, names: Collection[str]) -> dict[str, str]:
    """Says of an image what is asked for; equal pixels give equal words.

    Args:
        image: RGB.
        names: Among `colours`, `shape` and `regions`.

    Returns:
        A phrase for each, in the order of the names.
    """
    reduced = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    labels = _nearest_colours(reduced)
    detectors: dict[str, Callable[[], str]] = {
        "colours": lambda: _colours(labels),
        "shape": lambda: _shape(*image.size),
        "regions": lambda: _regions(labels),
    }
    return {name: detectors[name]() for name in names}


def _nearest_colours(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64[H, W]: index of each pixel's nearest named colour, by distance in CIELAB."""
    named = _to_lab(np.array(list(_PALETTE.values()), dtype=np.float64))
    distances = ((_to_lab(pixels.astype(np.float64))[:, :, None] - named) ** 2).sum(-1)
    return distances.argmin(-1)


def _to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """From sRGB in 0..255 to CIELAB under D65, where distances are as they look."""
    scaled = rgb / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _colours(labels: NDArray[np.int64]) -> str:
    counts = np.bincount(labels.ravel(), minlength=len(_PALETTE))
    order = np.argsort(-counts, kind="stable")[:_MAX_COLOURS]
    names = list(_PALETTE)
    common = [names[i] for i in order if counts[i] >= _MIN_COLOUR_SHARE * labels.size]
    return _join(common or [names[order[0]]])


def _shape(width: int, height: int) -> str:
    if width >= _WIDE * height:
        return "wide"
    return "tall" if height >= _WIDE * width else "square"


def _regions(labels: NDArray[np.int64]) -> str:
    """Connected areas of one colour that differ from the colour of the border."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    background = np.bincount(border).argmax()
    found, number = ndimage.label(labels != background)  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(np.asarray(found).ravel())[1 : number + 1]
    count = int((sizes >= _MIN_REGION_SHARE * labels.size).sum())
    if count > _MAX_REGIONS:
        return "many separate areas"
    return f"{_NUMBERS[count]} separate area{'' if count == 1 else 's'}"


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
