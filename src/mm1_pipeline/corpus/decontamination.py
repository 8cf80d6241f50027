"""Keeps the evaluation data out of training: pictures by perceptual hashes, texts by their n-grams.

The index is made of the evaluation sources once they are ingested, before any training source is
read, and lies on disk as arrays that all workers map into memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mm1_pipeline.config.corpus_rules import DecontaminationConfig
from mm1_pipeline.corpus.images import RejectedImage, open_image
from mm1_pipeline.corpus.perceptual_hash import (
    BLOCKS,
    Box,
    PerceptualHash,
    blocks,
    centred,
    differences,
    from_bytes,
    largest_difference,
    largest_error,
    perceptual_hashes,
)
from mm1_pipeline.corpus.records import Record
from mm1_pipeline.ground.rejects import Reason, Rejected

SUMMARY = "decontamination.json"

_CROP_STEPS = 3
_SMALL_SIDE = 8.0
"""Pixels; cutting whole pixels off an image of few adds this over its side to the tolerance."""
_MAX_COLOUR = 0.25
"""As `max_difference`, for the colours. Measured: copies stay below 0.17."""
_FEW_IMAGES = 1_000
"""Up to which comparing with all crops at once is faster than leaving some out first."""
_ROUNDING = np.float32(1.0)
"""For the squares of distances, which are differences of large numbers."""
_MARGIN = 1e-3
"""Of errors in levels, and relative to them; float32 rounds in the seventh digit."""
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def build_index(records: Iterable[Record], config: DecontaminationConfig, folder: Path) -> None:
    """Writes what training records are compared with.

    Args:
        records: of the evaluation sources.
        config: which parts are wanted, and the crops to expect.
        folder: gets the arrays and `decontamination.json`; is empty.
    """
    images, texts = _ImageRows(config), _TextRows(config)
    num_records = 0
    for record in records:
        num_records += 1
        name = f"{record.source}/{record.key}"
        if config.images:
            for image in record.images:
                images.add(name, image.sha256, image.bytes)
        if config.texts:
            texts.add_all(name, [*(s.text for s in record.segments if s.text), *record.references])
    arrays = {**images.arrays(), **texts.arrays()}
    for array_name, values in arrays.items():
        np.save(folder / f"{array_name}.npy", values)
    names = {"images": images.names, "texts": texts.names}
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    digest = hashlib.sha256()
    for array_name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[array_name]).tobytes())
    summary = {
        "records": num_records,
        "images": len(images.names),
        "texts": texts.num_texts,
        "texts_too_short": texts.num_short,
        "ngrams": sum(len(v) for n, v in arrays.items() if n.startswith("ngrams")),
        "digest": digest.hexdigest(),
    }
    (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")


def read_summary(folder: Path) -> dict[str, Any]:
    """What an index holds, and the digest of it."""
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


class Decontaminator:
    """Looks whether training records hold evaluation data.

    Args:
        folder: what `build_index` wrote.
        config: the tolerances.
    """

    def __init__(self, folder: Path, config: DecontaminationConfig) -> None:
        self._folder = folder
        self._names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        self._luma, self._chroma = self._load("luma"), self._load("chroma")
        self._tolerances = self._load("tolerances")
        self._blocks = np.asarray(self._load("blocks"))
        self._limits = np.asarray(self._load("limits"))
        self._reach = np.asarray(self._load("reach"))
        self._squares = np.sum(self._blocks**2, axis=2)
        self._ngrams: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for size in range(config.min_words, config.ngram_words + 1):
            hashes = self._load(f"ngrams{size}")
            if len(hashes):
                self._ngrams[size] = (hashes, self._load(f"ngram_owners{size}"))

    def _load(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @property
    def wants_images(self) -> bool:
        """Whether there are evaluation images to compare with."""
        return len(self._reach) > 0

    def check_image(self, found: PerceptualHash) -> None:
        """Refuses a picture that an evaluation image shows.

        Args:
            found: of the training image.

        Raises:
            RejectedImage: names the evaluation record.
        """
        luma, chroma = found.luma[None], found.chroma[None]
        means = blocks(centred(luma))[0]
        images = np.arange(len(self._reach))
        if len(images) > _FEW_IMAGES:
            images = images[self._squared_distances(images, means, whole=True) <= self._reach]
        # Nothing is missed: the means of blocks differ by no more than the pictures.
        distances = self._squared_distances(images, means, whole=False)
        rows, crops = np.nonzero(distances <= self._limits[images])
        if not len(rows):
            return
        images, crops = self._nearly_same(images[rows], crops, found.luma)
        if not len(images):
            return
        luma_error, chroma_error = differences(
            self._luma[images, crops], self._chroma[images, crops], luma, chroma
        )
        same = images[(luma_error <= self._tolerances[images]) & (chroma_error <= _MAX_COLOUR)]
        if len(same):
            name = self._names["images"][int(same[0])]
            raise RejectedImage(Reason.CONTAMINATED_IMAGE, f"shows the image of {name}")

    def _squared_distances(
        self, images: np.ndarray, means: np.ndarray, *, whole: bool
    ) -> np.ndarray:
        """Of the blocks of images, or of all their crops, to those of a picture."""
        crops = 0 if whole else slice(None)
        every = len(images) == len(self._blocks)
        rows = self._blocks[:, crops] if every else self._blocks[images, crops]
        squares = self._squares[:, crops] if every else self._squares[images, crops]
        return squares - 2 * (rows @ means) + means @ means

    def _nearly_same(
        self, images: np.ndarray, crops: np.ndarray, luma: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leaves out crops whose luminance differs by more than is allowed, and some.

        Errors as of `differences` by one product for all crops: plain pictures have thousands
        whose blocks are near. Sums over 256 squares of 8 bits stay below 2^24, so float32 holds
        them exactly; the margin is for roundings of what decides.
        """
        rows = self._luma[images, crops].reshape(len(images), -1).astype(np.float32)
        theirs = luma.reshape(-1).astype(np.float32)
        size = rows.shape[1]
        means, mean = rows.sum(axis=1, dtype=np.float64) / size, float(theirs.sum()) / size
        squares = np.einsum("ij,ij->i", rows, rows).astype(np.float64) / size
        variances = squares - means**2
        products = (rows @ theirs).astype(np.float64) / size - means * mean
        variance = float(theirs @ theirs) / size - mean**2
        errors = np.sqrt(np.maximum(variances + variance - 2 * products, 0))
        allowed = largest_difference(np.sqrt(np.maximum(variances, 0)), self._tolerances[images])
        near = errors <= allowed * (1 + _MARGIN) + _MARGIN
        return images[near], crops[near]

    def check_text(self, text: str) -> None:
        """Refuses a text that holds an n-gram of an evaluation text.

        Raises:
            Rejected: names the evaluation record.
        """
        if not self._ngrams:
            return
        words = word_hashes(text)
        for size, (hashes, owners) in self._ngrams.items():
            found = ngram_hashes(words, size)
            if not len(found):
                continue
            places = np.searchsorted(hashes, found)
            places[places == len(hashes)] = 0
            hits = np.flatnonzero(hashes[places] == found)
            if len(hits):
                name = self._names["texts"][int(owners[places[hits[0]]])]
                detail = f"holds {size} words in a row of {name}, from word {hits[0] + 1} on"
                raise Rejected(Reason.CONTAMINATED_TEXT, detail)


class _ImageRows:
    """Fingerprints of evaluation images, as they are and with their edges cut off."""

    def __init__(self, config: DecontaminationConfig) -> None:
        self._steps = np.linspace(0, config.max_crop, _CROP_STEPS) if config.max_crop else [0.0]
        self._max_difference = config.max_difference
        self._seen: set[str] = set()
        self._rows: list[bytes] = []
        self._tolerances: list[float] = []
        self.names: list[str] = []

    def add(self, name: str, sha256: str, data: bytes) -> None:
        if sha256 in self._seen:
            return
        self._seen.add(sha256)
        image = open_image(data)
        self._rows += [row.to_bytes() for row in perceptual_hashes(image, self._boxes(*image.size))]
        self._tolerances.append(self._max_difference * (1 + _SMALL_SIDE / min(image.size)))
        self.names.append(name)

    def _boxes(self, width: int, height: int) -> Iterator[Box]:
        for left, top, right, bottom in itertools.product(self._steps, repeat=4):
            yield (left * width, top * height, (1 - right) * width, (1 - bottom) * height)

    def arrays(self) -> dict[str, np.ndarray]:
        """Per image I and crop V, of which the first is the whole: luma uint8[I, V, 16, 16],
        chroma uint8[I, V, 4, 4, 2], blocks float32[I, V, 16], limits float32[I, V]. Per image:
        tolerances float32[I], reach float32[I]. Limits and reach are squares of distances of
        blocks: to a copy of the crop, and of any crop.
        """
        variants = len(self._steps) ** 4
        luma, chroma = from_bytes(self._rows)
        tolerances = np.array(self._tolerances, np.float32)
        allowed = largest_error(luma, np.repeat(tolerances, variants)).reshape(-1, variants)
        means = blocks(centred(luma)).reshape(len(allowed), variants, BLOCKS)
        own = np.sqrt(np.sum((means - means[:, :1]) ** 2, axis=2))
        distances = allowed * np.sqrt(np.float32(means.shape[2]))
        return {
            "luma": luma.reshape(-1, variants, *luma.shape[1:]),
            "chroma": chroma.reshape(-1, variants, *chroma.shape[1:]),
            "blocks": means,
            "tolerances": tolerances,
            "limits": distances**2 + _ROUNDING,
            "reach": (own + distances).max(axis=1, initial=0) ** 2 + _ROUNDING,
        }


class _TextRows:
    """Hashes of the n-grams of evaluation texts."""

    def __init__(self, config: DecontaminationConfig) -> None:
        self._config = config
        self._seen: set[bytes] = set()
        self._hashes: dict[int, dict[int, int]] = {
            size: {} for size in range(config.min_words, config.ngram_words + 1)
        }
        self.names: list[str] = []
        self.num_texts = self.num_short = 0

    def add_all(self, name: str, texts: list[str]) -> None:
        for text in texts:
            words = word_hashes(text)
            if words.tobytes() in self._seen:
                continue
            self._seen.add(words.tobytes())
            self.num_texts += 1
            size = min(len(words), self._config.ngram_words)
            if size < self._config.min_words:
                self.num_short += 1
                continue
            for value in ngram_hashes(words, size).tolist():
                self._hashes[size].setdefault(value, len(self.names))
            self.names.append(name)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for size, owners in self._hashes.items():
            ordered = sorted(owners)
            arrays[f"ngrams{size}"] = np.array(ordered, np.uint64)
            arrays[f"ngram_owners{size}"] = np.array([owners[v] for v in ordered], np.int64)
        return arrays


def word_hashes(text: str) -> np.ndarray:
    """A hash for each word, without regard to case and punctuation: uint64[num_words]."""
    words = _WORD.findall(text.lower())
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(word.encode()) for word in words), np.uint64, len(words))


def ngram_hashes(words: np.ndarray, size: int) -> np.ndarray:
    """A hash for each n-gram.

    Args:
        words: uint64[num_words], as `word_hashes` gives them.
        size: words of an n-gram.

    Returns:
        uint64[num_words - size + 1], empty where the text is shorter.
    """
    count = len(words) - size + 1
    if count < 1:
        return words[:0]
    hashes = words[:count].copy()
    for place in range(1, size):
        hashes = hashes * _MULTIPLIER + words[place : place + count]
    return hashes
