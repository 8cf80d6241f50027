"""Tasks: the items a model is asked, and the examples it may be shown."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.corpus.images import RejectedImage, check_image
from mm1_pipeline.corpus.records import Record, SegmentType, read_records
from mm1_pipeline.evaluation.metrics import NUM_ANSWERS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One thing a model is asked.

    Attributes:
        key: The record's key.
        image: SHA-256 of its encoded image; empty when the item has none.
        question: What is asked; None for captions.
        references: Captions, or the answers of ten people.
        failure: Why it cannot be asked; it then scores 0. None if it can.
    """

    key: str
    image: str
    question: str | None
    references: tuple[str, ...]
    failure: str | None = None

    def shown_answer(self, metric: Metric) -> str:
        """The answer a prompt shows when the item is a shot.

        A caption shot shows the first reference. A question shows what most people said; the
        first of them on a tie.
        """
        match metric:
            case Metric.CIDER:
                return self.references[0]
            case Metric.VQA_ACCURACY:
                return Counter(self.references).most_common(1)[0][0]


@dataclass(frozen=True)
class Task:
    """A task with its data.

    Attributes:
        name: As in `tasks` of the parameters.
        config: Its parameters.
        items: What is asked and scored, in the order of the records.
        pool: Items that may be shown as shots: every sound item of the source, by key.
        images: Encoded images of items and pool, by SHA-256.
    """

    name: str
    config: TaskConfig
    items: tuple[TaskItem, ...]
    pool: Mapping[str, TaskItem]
    images: Mapping[str, bytes]

    @property
    def failures(self) -> dict[str, str]:
        """Why items cannot be asked, by key."""
        return {item.key: item.failure for item in self.items if item.failure is not None}


def load_task(name: str, config: TaskConfig, records_dir: Path, seed: int) -> Task:
    """Reads a task's items from the records of its source.

    An item without image, question or references, or with an image that does not decode,
    stays in the task as a failure and is never shown as a shot.

    Args:
        name: Name of the task.
        config: Its parameters.
        records_dir: The artifact that contains `records/`.
        seed: Chooses the items when `max_items` is set.

    Returns:
        The task, with every encoded image in memory once.

    Raises:
        ValueError: If the source has fewer than two records, or none that can be asked.
    """
    images: dict[str, bytes] = {}
    items = []
    for record in read_records(records_dir, config.source):
        items.append(_read_item(record, config.metric))
        images.update({image.sha256: image.bytes for image in record.images})
    items = _fail_broken_images(items, images)
    if len(items) < 2:
        raise ValueError(
            f"tasks.{name}.source: found {len(items)} records in {config.source!r}; a score with "
            "a standard error needs at least 2."
        )
    asked = _choose_items(name, items, config.max_items, seed)
    task = Task(
        name=name,
        config=config,
        items=tuple(asked),
        pool={item.key: item for item in items if item.failure is None},
        images=images,
    )
    if not task.pool:
        reasons = sorted(set(task.failures.values()))
        raise ValueError(
            f"tasks.{name}.source: found no usable record in {config.source!r}: "
            f"{'; '.join(reasons[:3])}. Check the source's format and the task's metric."
        )
    for key, reason in task.failures.items():
        logger.warning("%s: item %s counts as wrong: %s", name, key, reason)
    return task


def _read_item(record: Record, metric: Metric) -> TaskItem:
    texts = [s.text or "" for s in record.segments if s.type == SegmentType.TEXT]
    question = "\n".join(texts).strip() if metric == Metric.VQA_ACCURACY else None
    references = tuple(text.strip() for text in record.references)
    failure = None
    if len(record.images) != 1:
        failure = f"found {len(record.images)} images, expected 1"
    elif question == "":
        failure = "found no question"
    elif metric == Metric.CIDER and not any(references):
        failure = "found no reference caption"
    elif metric == Metric.VQA_ACCURACY and len(references) != NUM_ANSWERS:
        failure = f"found {len(references)} answers, expected {NUM_ANSWERS}"
    return TaskItem(
        key=record.key,
        image=record.images[0].sha256 if record.images else "",
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
            broken[key] = f"image: {error}"
    return [
        replace(item, failure=broken[item.image])
        if item.failure is None and item.image in broken
        else item
        for item in items
    ]


def _choose_items(
    name: str, items: list[TaskItem], max_items: int | None, seed: int
) -> list[TaskItem]:
    if max_items is None or max_items >= len(items):
        return items

    def rank(item: TaskItem) -> str:
        return hashlib.sha256(json.dumps([seed, name, item.key]).encode()).hexdigest()

    chosen = {item.key for item in sorted(items, key=rank)[:max_items]}
    return [item for item in items if item.key in chosen]
