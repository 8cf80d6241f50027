"""What a picture looks like, in 288 numbers that survive resizing and compression.

A perceptual hash is a picture of 16 x 16 luminances and one of 4 x 4 colours. Two are compared by
their difference relative to the contrast, and found by keys: coarse steps of the hash with
several offsets, of which two copies of a picture share at least one nearly always.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from PIL import Image

LUMA_SIDE = 16
CHROMA_SIDE = 4
BLOCKS = CHROMA_SIDE**2
"""Blocks of 4 x 4 luminances."""
NUM_BYTES = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
"""Of a stored perceptual hash."""

_FLAT_LUMA = 4.0
_FLAT_CHROMA = 8.0
"""Contrast below which differences count absolutely: flat pictures are alike."""
_BRIGHTNESS = 64.0
"""Levels of mean luminance that count as a whole contrast."""
_GREY = 128.0
_NUM_KEYS = 8
_KEY_STEP = 24
"""Levels of a step. Copies differ by about one level in each of 18 averages, so that a key is the
same with the probability (1 - 1/24)^18 = 0.46, and one of 8 keys with 0.99."""
_ENOUGH_SIDE = 128

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class PerceptualHash:
    """What a picture looks like."""

    luma: np.ndarray
    """uint8[16, 16]"""
    chroma: np.ndarray
    """uint8[4, 4, 2]"""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.luma.tobytes() + self.chroma.tobytes()


def perceptual_hash(image: Image.Image) -> PerceptualHash:
    """Computes the perceptual hash of a picture.

    Args:
        image: in mode RGB, of any size; one that was decoded at a fraction of its size will do.
    """
    return next(perceptual_hashes(image, [(0, 0, *image.size)]))


def perceptual_hashes(image: Image.Image, boxes: Iterable[Box]) -> Iterator[PerceptualHash]:
    """Computes the perceptual hashes of parts of a picture.

    Args:
        image: in mode RGB.
        boxes: left, top, right and bottom of each part, in pixels.
    """
    factor = max(1, min(image.size) // _ENOUGH_SIDE)
    planes = (image.reduce(factor) if factor > 1 else image).convert("YCbCr")
    luma = planes.getchannel(0)
    scale_x, scale_y = planes.width / image.width, planes.height / image.height
    for left, top, right, bottom in boxes:
        box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        chroma = np.asarray(_shrink(planes, CHROMA_SIDE, box))[..., 1:]
        yield PerceptualHash(np.asarray(_shrink(luma, LUMA_SIDE, box)), chroma)


def _shrink(image: Image.Image, side: int, box: Box) -> Image.Image:
    """Averages over areas, so that the size of the picture does not matter."""
    enlarges = min(image.size) < side
    method = Image.Resampling.BILINEAR if enlarges else Image.Resampling.BOX
    return image.resize((side, side), method, box=box)


def from_bytes(stored: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Stored perceptual hashes as arrays.

    Returns:
        uint8[N, 16, 16] and uint8[N, 4, 4, 2].
    """
    rows = np.frombuffer(b"".join(stored), np.uint8).reshape(-1, NUM_BYTES)
    luma, chroma = rows[:, : LUMA_SIDE**2], rows[:, LUMA_SIDE**2 :]
    return (
        luma.reshape(-1, LUMA_SIDE, LUMA_SIDE),
        chroma.reshape(-1, CHROMA_SIDE, CHROMA_SIDE, 2),
    )


def differences(
    luma: np.ndarray, chroma: np.ndarray, other_luma: np.ndarray, other_chroma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much pictures differ from others, each relative to its own contrast.

    The brightness as a whole counts little, but it tells blank pictures apart.

    Args:
        luma: uint8[N, 16, 16]
        chroma: uint8[N, 4, 4, 2]
        other_luma: uint8[N or 1, 16, 16]
        other_chroma: uint8[N or 1, 4, 4, 2]

    Returns:
        float[N] for the luminance and float[N] for the colours; 0 for the same picture.
    """
    ours, theirs = centred(luma), centred(other_luma)
    luma_error = root_mean_square(ours - theirs) / (root_mean_square(ours) + _FLAT_LUMA)
    brightness = np.abs(luma.mean(axis=(1, 2)) - other_luma.mean(axis=(1, 2))) / _BRIGHTNESS
    colours = chroma.astype(np.float32)
    saturation = root_mean_square(colours - _GREY)
    chroma_error = root_mean_square(colours - other_chroma.astype(np.float32))
    return np.maximum(luma_error, brightness), chroma_error / (saturation + _FLAT_CHROMA)


def centred(luma: np.ndarray) -> np.ndarray:
    """Luminances without the mean of each picture: float[N, 16, 16]."""
    values = luma.astype(np.float32)
    return values - values.mean(axis=(1, 2), keepdims=True)


def largest_error(luma: np.ndarray, max_difference: np.ndarray) -> np.ndarray:
    """The error, in levels, that `differences` calls `max_difference`: float[N]."""
    return largest_difference(root_mean_square(centred(luma)), max_difference)


def largest_difference(contrast: np.ndarray, max_difference: np.ndarray) -> np.ndarray:
    """The same, of pictures with a contrast (root mean square about the mean): float[N]."""
    return max_difference * (contrast + _FLAT_LUMA)


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """Over all axes but the first."""
    return np.sqrt(np.mean(values**2, axis=tuple(range(1, values.ndim))))


def blocks(values: np.ndarray) -> np.ndarray:
    """Means of blocks of 4 x 4: float[N, 16, 16] -> float[N, 16].

    Two pictures differ in these by no more than in the whole.
    """
    side = LUMA_SIDE // CHROMA_SIDE
    parted = values.reshape(-1, CHROMA_SIDE, side, CHROMA_SIDE, side)
    return parted.mean(axis=(2, 4)).reshape(-1, CHROMA_SIDE**2)


def lookup_keys(stored: Sequence[bytes]) -> list[list[int]]:
    """Keys of 63 bits of stored perceptual hashes; copies of a picture share one nearly always.

    Returns:
        The same number of keys for each perceptual hash; equal ones are in the same place.
    """
    luma, chroma = from_bytes(stored)
    means = [blocks(luma.astype(np.float32)), chroma.mean(axis=(1, 2))]
    averages = np.concatenate(means, axis=1)[:, None]
    steps = ((averages + _OFFSETS) // _KEY_STEP).astype(np.uint8)
    digest, content, size = xxhash.xxh3_64_intdigest, memoryview(steps.tobytes()), steps.shape[2]
    keys = iter(
        digest(content[start : start + size], seed=number % _NUM_KEYS) >> 1
        for number, start in enumerate(range(0, steps.size, size))
    )
    return [list(itertools.islice(keys, _NUM_KEYS)) for _ in stored]


_OFFSETS = np.random.default_rng(0).uniform(0, _KEY_STEP, (_NUM_KEYS, CHROMA_SIDE**2 + 2))
