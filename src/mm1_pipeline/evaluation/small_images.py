"""Small copies of benchmark images beside the predictions, for pages that show examples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mm1_pipeline.corpus.images import RejectedImage, open_image
from mm1_pipeline.evaluation.tasks import Task, TaskItem

FOLDER = "images"
"""Lies beside the models' folders of an artifact of predictions."""
MAX_SIDE = 256
"""Longer side in pixels."""
MAX_IMAGES = 64
"""Items of a task whose image is copied, in the order of a hash of their key. Our choice."""

_QUALITY = 88


def write_small_images(tasks: Sequence[Task], output_dir: Path) -> None:
    """Writes `images/<SHA-256 of the original>.jpg` for some items of every task out of files.

    Items out of an ingested source need none: their images are in the records.
    """
    for task in tasks:
        if task.config.format is None:
            continue
        for item in _shown_first(task.items)[:MAX_IMAGES]:
            _write_copy(task.images[item.image], output_dir / FOLDER / f"{item.image}.jpg")


def _shown_first(items: Sequence[TaskItem]) -> list[TaskItem]:
    """Items with an image in the order in which reports choose examples."""

    def rank(item: TaskItem) -> str:
        return hashlib.sha256(item.key.encode("utf-8", "surrogatepass")).hexdigest()

    return sorted((item for item in items if item.image), key=rank)


def _write_copy(data: bytes, path: Path) -> None:
    if path.exists():
        return
    try:
        image = open_image(data)
    except RejectedImage:
        return
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
