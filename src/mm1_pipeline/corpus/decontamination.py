"""Keeps the evaluation data out of training: pictures by perceptual hashes, texts by their n-grams.

The index is made of the evaluation sources once they are ingested, and of the official files of
benchmarks, before any training source is read. It lies on disk as arrays that all workers map into
memory. What is asked comes first in it, then the examples that are only shown: fine-tuning, which
learns from the training splits that they are drawn from, is compared with the first part alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from mm1_pipeline.config.corpus_rules import DecontaminationConfig
from mm1_pipeline.corpus.images import ImageSource, RejectedImage, encoded, open_image
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

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One thing that a model is asked, or shown, when it is evaluated."""

    benchmark: str
    """Name of the evaluation source or task."""
    key: str
    images: tuple[ImageSource, ...] = ()
    texts: tuple[str, ...] = ()
    """Whatever somebody wrote for it: questions, options, captions, answers."""
    is_shown: bool = False
    """Whether it is only an example in prompts, which may come from a training split."""
    failure: str | None = None
    """Why it is no item; None if it is one."""


def items_of(records: Iterable[Record]) -> Iterator[EvaluationItem]:
    """The records of evaluation sources as items."""
    for record in records:
        images = tuple(image.bytes for image in record.images)
        texts = (*(s.text for s in record.segments if s.text), *record.references)
        yield EvaluationItem(record.source, record.key, images, texts)


def build_index(
    items: Iterable[EvaluationItem], config: DecontaminationConfig, folder: Path
) -> dict[str, Any]:
    """Writes what training records are compared with.

    Args:
        items: those that are asked before those that are shown.
        config: which parts are wanted, and the crops to expect.
        folder: gets the arrays and `decontamination.json`; is empty.

    Returns:
        The summary: how many records, images and texts, the same for each benchmark, and the
        digest of the arrays.
    """
    images, texts = _ImageRows(config), _TextRows(config)
    asked, shown = _Counts(), _Counts()
    borders: tuple[int, int] | None = None
    for item in items:
        assert item.is_shown or borders is None, "what is asked comes first"
        if item.is_shown and borders is None:
            borders = len(images.names), len(texts.names)
        _add(item, config, images, texts, (shown if item.is_shown else asked).of(item.benchmark))
    num_images, num_texts = borders or (len(images.names), len(texts.names))
    arrays = {
        **images.arrays(),
        **texts.arrays(),
        "num_asked": np.array([num_images, num_texts], np.int64),
    }
    for array_name, values in arrays.items():
        np.save(folder / f"{array_name}.npy", values)
    names = {"images": images.names, "texts": texts.names}
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    digest = hashlib.sha256()
    for array_name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[array_name]).tobytes())
    benchmarks: dict[str, Any] = {name: counts.to_json() for name, counts in asked.found.items()}
    for name, counts in shown.found.items():
        benchmarks.setdefault(name, {})["shots"] = counts.to_json()
    every = [*asked.found.values(), *shown.found.values()]
    summary = {
        "records": sum(counts.numbers["records"] for counts in every),
        "images": len(images.names),
        "texts": texts.num_texts,
        "texts_too_short": texts.num_short,
        "failed": sum(counts.numbers["failed"] for counts in every),
        "ngrams": sum(len(v) for n, v in arrays.items() if n.startswith("ngrams")),
        "benchmarks": benchmarks,
        "digest": digest.hexdigest(),
    }
    (folder / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    return summary


@dataclass
class _Benchmark:
    """What one benchmark holds, whether or not another one holds it as well."""

    numbers: Counter[str] = field(default_factory=Counter)
    images: set[str] = field(default_factory=set)
    texts: set[bytes] = field(default_factory=set)

    def to_json(self) -> dict[str, int]:
        counts = {"images": len(self.images), "texts": len(self.texts)}
        return {"records": self.numbers["records"], **counts, "failed": self.numbers["failed"]}


class _Counts:
    """By benchmark, in the order in which they come."""

    def __init__(self) -> None:
        self.found: dict[str, _Benchmark] = {}

    def of(self, name: str) -> _Benchmark:
        return self.found.setdefault(name, _Benchmark())


def _add(
    item: EvaluationItem,
    config: DecontaminationConfig,
    images: _ImageRows,
    texts: _TextRows,
    counts: _Benchmark,
) -> None:
    """Takes an item in; one with a bad image keeps its other images and its texts."""
    counts.numbers["records"] += 1
    name, failure = f"{item.benchmark}/{item.key}", item.failure
    for image in item.images if config.images else ():
        try:
            counts.images.add(images.add(name, image))
        except (RejectedImage, ValueError) as error:
            failure = failure or f"image: {error}"
    if config.texts:
        counts.texts |= texts.add_all(name, item.texts)
    if failure is not None:
        counts.numbers["failed"] += 1
        if counts.numbers["failed"] == 1:
            logger.warning(
                "%s: cannot be compared with as a whole (%s); the report counts how many of the "
                "benchmark cannot.",
                name,
                failure,
            )


def read_summary(folder: Path) -> dict[str, Any]:
    """What an index holds, and the digest of it."""
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def index_problems(
    summary: Mapping[str, Any], config: DecontaminationConfig, benchmarks: Mapping[str, str]
) -> list[str]:
    """What an index lacks that it was to hold.

    Args:
        summary: Of `build_index`.
        config: Whether anything is required, and which parts are wanted.
        benchmarks: Those whose files were read: by name the parameter that has it, such as
            `evaluate.tasks.coco`, or `evaluate.text_tasks.piqa`, whose items have no images.

    Returns:
        A text for each.
    """
    if not config.required or not config.is_wanted:
        return []
    out = "ingest.decontamination"
    problems = []
    if not summary["images"] and not summary["texts"]:
        problems.append(
            f"{out}.required: found nothing to compare training data with (0 images and 0 texts of "
            f"{summary['records']} records), expected an evaluation source in ingest.sources "
            "(split: evaluation) or a benchmark whose files evaluate.tasks names. Name one, or set "
            "it to false to learn from data that nothing is kept out of."
        )
    for name, parameter in benchmarks.items():
        found = summary["benchmarks"].get(name, {})
        has_images = config.images and parameter.startswith("evaluate.tasks.")
        for files, counts in (("files", found), ("shot_files", found.get("shots"))):
            if counts is None:
                continue
            lacks = "records" if not counts.get("records") else "images" if has_images else "texts"
            if counts.get(lacks) or (lacks == "texts" and not config.texts):
                continue
            problems.append(
                f"{parameter}.{files}: found 0 {lacks} to keep out of training, of "
                f"{counts.get('records', 0)} items, expected files of its format, whole, and "
                f"images where they are. Correct the paths, set {out}.benchmarks.{name} to "
                f"false to leave it out, or {out}.required to false."
            )
    return problems


class Decontaminator:
    """Looks whether training records hold evaluation data.

    Args:
        folder: what `build_index` wrote.
        with_shots: whether to look for the examples that are only shown, too.
    """

    def __init__(self, folder: Path, *, with_shots: bool = True) -> None:
        self._folder = folder
        self._names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        num_images, num_texts = map(int, self._load("num_asked"))
        # The first that has an image or an n-gram owns it, so what is asked is never among these.
        self._num_texts = len(self._names["texts"]) if with_shots else num_texts
        first = slice(None if with_shots else num_images)
        self._luma, self._chroma = self._load("luma")[first], self._load("chroma")[first]
        self._tolerances = self._load("tolerances")[first]
        self._blocks = np.asarray(self._load("blocks")[first])
        self._limits = np.asarray(self._load("limits")[first])
        self._reach = np.asarray(self._load("reach")[first])
        self._squares = np.sum(self._blocks**2, axis=2)
        self._ngrams: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        sizes = (file.stem.removeprefix("ngrams") for file in folder.glob("ngrams*.npy"))
        for size in sorted(map(int, sizes)):
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
            hits = np.flatnonzero((hashes[places] == found) & (owners[places] < self._num_texts))
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
        self._files: dict[Path, str] = {}
        self._rows: list[bytes] = []
        self._tolerances: list[float] = []
        self.names: list[str] = []

    def add(self, name: str, source: ImageSource) -> str:
        """Takes an image in that is not there yet; a file is read once.

        Returns:
            SHA-256 of the encoded image.

        Raises:
            RejectedImage: it does not decode, or breaks a limit of size.
            ValueError: there is no such file.
        """
        if isinstance(source, Path) and source in self._files:
            return self._files[source]
        data = encoded(source)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._seen:
            image = open_image(data)
            rows = perceptual_hashes(image, self._boxes(*image.size))
            self._rows.append(b"".join(row.to_bytes() for row in rows))
            self._tolerances.append(self._max_difference * (1 + _SMALL_SIDE / min(image.size)))
            self.names.append(name)
            self._seen.add(sha256)
        if isinstance(source, Path):
            self._files[source] = sha256
        return sha256

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

    def add_all(self, name: str, texts: Iterable[str]) -> set[bytes]:
        """Takes texts in; gives a digest of each, the same for texts of the same words."""
        digests = set()
        for text in texts:
            words = word_hashes(text)
            digest = xxhash.xxh3_128_digest(words.tobytes())
            digests.add(digest)
            if digest in self._seen:
                continue
            self._seen.add(digest)
            self.num_texts += 1
            size = min(len(words), self._config.ngram_words)
            if size < self._config.min_words:
                self.num_short += 1
                continue
            for value in ngram_hashes(words, size).tolist():
                self._hashes[size].setdefault(value, len(self.names))
            self.names.append(name)
        return digests

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
