"""Tasks: the items a model is asked, and the examples it may be shown."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.corpus.images import ImageSource, RejectedImage, check_image, encoded
from mm1_pipeline.corpus.records import Record, SegmentType, read_records
from mm1_pipeline.evaluation.benchmarks import asked_files, shown_files
from mm1_pipeline.evaluation.formats.base import RawItem, letter
from mm1_pipeline.evaluation.formats.dispatch import read_items
from mm1_pipeline.evaluation.scoring.metrics import NUM_ANSWERS

logger = logging.getLogger(__name__)

REPEATS = "repeats"
"""Fact: the key of an earlier item that this one has in the benchmark's files."""

T = TypeVar("T", "TaskItem", RawItem)


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One thing a model is asked.

    Attributes:
        key: Unique within the task.
        images: SHA-256 of its encoded images; empty when it has none.
        question: What is asked; None for captions.
        references: Captions, the answers of ten people, the right letter or the right answer.
        failure: Why it cannot be asked; it then scores 0. None if it can.
        options: Texts of the options, A first.
        group: Items of one group are judged together; empty for an item alone.
        category: Split, kind or capability that scores are also given by.
        facts: What else the metric needs.
    """

    key: str
    images: tuple[str, ...]
    question: str | None
    references: tuple[str, ...]
    failure: str | None = None
    options: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """SHA-256 of the first image; empty when the item has none."""
        return self.images[0] if self.images else ""

    @property
    def cluster(self) -> str:
        """What is resampled together: the group, else the image, else the item."""
        return self.group or self.image or self.key

    def shown_answer(self, metric: Metric) -> str:
        """The answer a prompt shows when the item is a shot; see `shown_answer`."""
        return shown_answer(self.references, metric)


def shown_answer(references: tuple[str, ...], metric: Metric) -> str:
    """The answer a prompt shows for an example: what most of ten people said, else the first."""
    if metric.has_ten_answers:
        return Counter(references).most_common(1)[0][0]
    return references[0]


class FilePool(Mapping[str, TaskItem]):
    """Examples out of files: an image is read only when its example is drawn."""

    def __init__(self, items: Iterable[RawItem], metric: Metric, images: ImageStore) -> None:
        self._items = {item.key: item for item in items if _failure(item, metric) is None}
        self._metric = metric
        self._images = images

    def __getitem__(self, key: str) -> TaskItem:
        return _hashed(self._items[key], self._metric, self._images)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def shown_answers(self) -> Iterator[str]:
        """The answer each example would show, without reading an image."""
        return (shown_answer(item.references, self._metric) for item in self._items.values())


@dataclass(frozen=True)
class Task:
    """A task with its data.

    Attributes:
        name: As in `tasks` of the parameters.
        config: Names a source or the files of a format, and what is kept of them.
        items: What is asked and scored, in the order of the records.
        pool: Items that may be shown as shots, by key. Out of a source, every sound item of it;
            out of files, those of the training split where given, whose images are yet unread.
        images: Encoded images of items and pool, by SHA-256.
        rejects: Why entries beside the items are none, by key, such as answers to no question: they
            are listed, and no score counts them.
    """

    name: str
    config: TaskConfig
    items: tuple[TaskItem, ...]
    pool: Mapping[str, TaskItem]
    images: Mapping[str, bytes]
    rejects: Mapping[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Why items cannot be asked, by key."""
        return {item.key: item.failure for item in self.items if item.failure is not None}

    def shown_answers(self) -> Iterable[str]:
        """The answer that each example of the pool would show."""
        if isinstance(self.pool, FilePool):
            return self.pool.shown_answers()
        return (item.shown_answer(self.config.metric) for item in self.pool.values())


def load_task(name: str, config: TaskConfig, records_dir: Path, seed: int) -> Task:
    """Reads a task's items from the records of its source, or from official files.

    An item without image, question or references, or with an image that does not decode,
    stays in the task as a failure and is never shown as a shot.

    Args:
        name: The task's key in the parameters; begins messages.
        config: Names a source or the files of a format, and what is kept of them.
        records_dir: The artifact that contains `records/`.
        seed: Chooses the items when `max_items` is set.

    Returns:
        The task.

    Raises:
        ValueError: If there are fewer than two items, or none that can be asked.
    """
    if config.source is not None:
        task = _load_source(name, config, config.source, records_dir, seed)
    else:
        task = _load_files(name, config, seed)
    needs_pool = not config.hidden_answers
    if not any(item.failure is None for item in task.items) or (needs_pool and not task.pool):
        reasons = sorted(set(task.failures.values()))
        raise ValueError(
            f"tasks.{name}.{_place(config)}: found no usable record in {_data(config)!r}: "
            f"{'; '.join(reasons[:3])}. Check the source's format and the task's metric."
        )
    for key, reason in task.failures.items():
        logger.warning("%s: item %s counts as wrong: %s", name, key, reason)
    if task.rejects:
        key, reason = next(iter(task.rejects.items()))
        logger.warning(
            "%s: entries in its files that belong to no item: %d, as %s: %s. evaluation.json "
            "counts them by reason.",
            name,
            len(task.rejects),
            key,
            reason,
        )
    return task


def _load_source(name: str, config: TaskConfig, source: str, records_dir: Path, seed: int) -> Task:
    """Every encoded image is in memory once."""
    images: dict[str, bytes] = {}
    items = []
    for record in read_records(records_dir, source):
        items.append(_read_item(record, config.metric))
        images.update({image.sha256: image.bytes for image in record.images})
    items = _unique(name, _fail_broken_images(items, images))
    _check_count(name, config, len(items))
    return Task(
        name=name,
        config=config,
        items=tuple(_choose_items(name, items, config.max_items, seed)),
        pool={item.key: item for item in items if item.failure is None},
        images=images,
    )


def _load_files(name: str, config: TaskConfig, seed: int) -> Task:
    """Images of the asked items are read and checked; those of the pool when they are drawn."""
    assert config.format is not None
    found = list(read_items(config.format, asked_files(config)))
    raw = _unique(name, (item for item in found if item.is_asked))
    _check_count(name, config, len(raw))
    images = ImageStore()
    chosen = _choose_items(name, raw, config.max_items, seed)
    return Task(
        name=name,
        config=config,
        items=tuple(
            _hashed(item, config.metric, images, hidden=config.hidden_answers) for item in chosen
        ),
        pool=FilePool(_shot_items(name, config, raw), config.metric, images),
        images=images,
        rejects={item.key: item.failure or "" for item in found if not item.is_asked},
    )


def num_examples(name: str, config: TaskConfig) -> tuple[int, int]:
    """How many items a task's official files ask, and how many of its examples a query can show.

    Images are not looked at, so there may be fewer of both.

    Args:
        name: Name of the task.
        config: Its parameters, with `format`.

    Raises:
        ValueError: A file is missing, or not in the format.
    """
    assert config.format is not None
    items = [item for item in read_items(config.format, asked_files(config)) if item.is_asked]
    if max(config.shots) == 0:
        return len(items), 0
    shots = _shot_items(name, config, items)
    is_own = shots is items
    return len(items), sum(_failure(item, config.metric) is None for item in shots) - is_own


def _shot_items(name: str, config: TaskConfig, asked: list[RawItem]) -> list[RawItem]:
    """Items of the training files or subset where there are; else those that are asked."""
    files = shown_files(config) if max(config.shots) > 0 else None
    if files is None:
        return asked
    assert config.format is not None
    found = read_items(config.format, files)
    return _unique(f"{name}, shots", (item for item in found if item.is_asked))


def _unique(name: str, items: Iterable[T]) -> list[T]:
    """All items, each under a key of its own: scores are kept by key.

    One with a key that was there before is asked and scored like any other; only a file to hand in
    leaves it out, because a server knows one answer to a question.
    """
    found: dict[str, T] = {}
    copies: Counter[str] = Counter()
    renamed: list[str] = []
    for item in items:
        key = item.key
        while key in found:
            copies[item.key] += 1
            key = f"{item.key} (again, {copies[item.key]})"
        if key != item.key:
            renamed.append(key)
            facts = {**item.facts, REPEATS: item.key}
            found[key] = replace(item, key=key, facts=facts)
        else:
            found[key] = item
    if renamed:
        logger.warning(
            "%s: found %d of %d items under keys that others have; they are asked and scored under "
            "keys of their own, such as %r.",
            name,
            len(renamed),
            len(found),
            renamed[0],
        )
    return list(found.values())


def _hashed(item: RawItem, metric: Metric, images: ImageStore, *, hidden: bool = False) -> TaskItem:
    """The item with its images by SHA-256; a broken image makes it a failure."""
    failure = _failure(item, metric, hidden=hidden)
    hashes: list[str] = []
    if failure is None:
        try:
            hashes = [images.add(source) for source in item.images]
        except (RejectedImage, ValueError) as error:
            failure = image_failure(error)
    return TaskItem(
        key=item.key,
        images=tuple(hashes),
        question=item.question,
        references=tuple(text for text in item.references if text or metric != Metric.CIDER),
        failure=failure,
        options=item.options,
        group=item.group,
        category=item.category,
        facts=item.facts,
    )


def _failure(item: RawItem, metric: Metric, *, hidden: bool = False) -> str | None:
    """Why an item cannot be asked, as far as that shows without its images."""
    if item.failure is not None:
        return item.failure
    if not item.images:
        return "found 0 images, expected 1"
    if metric == Metric.CIDER:
        return None if any(item.references) or hidden else "found no reference caption"
    if not item.question:
        return "found no question"
    if hidden:
        return None
    if metric.has_ten_answers and len(item.references) != NUM_ANSWERS:
        return f"found {len(item.references)} answers, expected {NUM_ANSWERS}"
    if not item.references:
        return "found no reference answer"
    if len(item.options) == 1:
        return "found 1 option, expected 2 or more"
    return None


def _place(config: TaskConfig) -> str:
    return "source" if config.source is not None else "files"


def _data(config: TaskConfig) -> str:
    if config.source is not None:
        return config.source
    return ", ".join(sorted((config.files or {}).values()))


def _check_count(name: str, config: TaskConfig, count: int) -> None:
    if count < 2:
        raise ValueError(
            f"tasks.{name}.{_place(config)}: found {count} records in {_data(config)!r}; a score "
            "with a standard error needs at least 2."
        )


def _read_item(record: Record, metric: Metric) -> TaskItem:
    texts = [s.text or "" for s in record.segments if s.type == SegmentType.TEXT]
    question = None if metric == Metric.CIDER else "\n".join(texts).strip()
    references = tuple(text.strip() for text in record.references)
    failure = None
    if len(record.images) != 1:
        failure = f"found {len(record.images)} images, expected 1"
    elif question == "":
        failure = "found no question"
    elif metric == Metric.CIDER and not any(references):
        failure = "found no reference caption"
    elif metric.has_ten_answers and len(references) != NUM_ANSWERS:
        failure = f"found {len(references)} answers, expected {NUM_ANSWERS}"
    elif not references:
        failure = "found no reference answer"
    return TaskItem(
        key=record.key,
        images=(record.images[0].sha256,) if record.images else (),
        question=question,
        references=tuple(text for text in references if text or metric != Metric.CIDER),
        failure=failure,
    )


def _fail_broken_images(items: Iterable[TaskItem], images: Mapping[str, bytes]) -> list[TaskItem]:
    broken: dict[str, str] = {}
    for key, data in images.items():
        try:
            check_image(data)
        except RejectedImage as error:
            broken[key] = image_failure(error)
    return [
        replace(item, failure=broken[item.image])
        if item.failure is None and item.image in broken
        else item
        for item in items
    ]


def _choose_items(name: str, items: list[T], max_items: int | None, seed: int) -> list[T]:
    if max_items is None or max_items >= len(items):
        return items

    def rank(item: T) -> str:
        return hashlib.sha256(json.dumps([seed, name, item.group or item.key]).encode()).hexdigest()

    # Whole groups: half of a group would be judged by another rule.
    ranked = sorted(items, key=rank)
    chosen = {item.key for item in ranked[:max_items]}
    groups = {item.group for item in ranked[:max_items] if item.group}
    return [item for item in items if item.key in chosen or item.group in groups]


def option_lines(options: Iterable[str]) -> str:
    """Options as a prompt shows them: a letter and a text a line."""
    return "\n".join(f"{letter(index)}. {text}" for index, text in enumerate(options))


class ImageStore(Mapping[str, bytes]):
    """Encoded images by SHA-256.

    Images that lie in files stay there: a benchmark has more of them than fit in memory.
    """

    def __init__(self) -> None:
        self._sources: dict[str, ImageSource] = {}
        self._hashes: dict[Path, str] = {}

    def add(self, source: ImageSource) -> str:
        """Takes an image in and gives its SHA-256.

        Raises:
            RejectedImage: It does not decode, or breaks a limit of size.
            ValueError: There is no such file.
        """
        if isinstance(source, Path) and source in self._hashes:
            return self._hashes[source]
        data = encoded(source)
        check_image(data)
        digest = hashlib.sha256(data).hexdigest()
        self._sources.setdefault(digest, source)
        if isinstance(source, Path):
            self._hashes[source] = digest
        return digest

    def __getitem__(self, digest: str) -> bytes:
        return encoded(self._sources[digest])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def image_failure(error: Exception) -> str:
    """Why an image cannot be shown, as an item's failure."""
    return f"image: {error}"
