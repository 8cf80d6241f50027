"""Questions that are answered yes or no: POPE, MME."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats.base import (
    FormatFiles,
    RawItem,
    data_files,
    inside,
    parse_keyed,
    parse_rows,
    read_json_lines,
    read_text,
    text_of,
)

POPE_SPLITS = ("random", "popular", "adversarial")

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
"""Categories of MME; each has 2 questions an image."""

_IMAGES = (".jpg", ".jpeg", ".png")
_ANSWERS = ("yes", "no")


def read_pope(files: FormatFiles) -> Iterator[RawItem]:
    """The three splits after each other; their questions are numbered alike."""
    for split in POPE_SPLITS:

        def parse(row: Any, split: str = split) -> RawItem:
            return RawItem(
                key=f"{split}/{row['question_id']}",
                images=(files.image(row["image"]),),
                question=text_of(row["text"]),
                references=(_yes_or_no(row["label"]),),
                category=split,
            )

        # A malformed line still belongs to its split.
        items = parse_rows(read_json_lines(files.paths[split]), parse)
        yield from (
            replace(item, category=split, key=f"{split}/{item.key.removeprefix(f'{split}/')}")
            for item in items
        )


def read_mme(files: FormatFiles) -> Iterator[RawItem]:
    """All questions of the subset's categories, by category and image.

    Images lie beside their questions, or in `images` beside `questions_answers_YN`.
    """
    root = files.paths["data"]
    categories = {"perception": PERCEPTION, "cognition": COGNITION}.get(
        files.subset, PERCEPTION + COGNITION
    )
    found = False
    for category in categories:
        folder = root / category
        texts = folder / "questions_answers_YN"
        images = folder / "images" if texts.is_dir() else folder
        for path in data_files(texts if texts.is_dir() else folder, "*.txt"):
            found = True
            yield from _read_mme_image(category, path, images)
    if not found:
        raise ValueError(
            f"Found no question files in {root}; expected a folder for each of "
            f"{', '.join(categories)}."
        )


def _read_mme_image(category: str, path: Path, images: Path) -> Iterator[RawItem]:
    group = f"{category}/{path.stem}"

    def parse(key: str, line: str) -> RawItem:
        question, tab, answer = line.rstrip().rpartition("\t")
        if not tab:
            raise ValueError("found no tab between question and answer")
        return RawItem(
            key=key,
            images=(_image_beside(images, path.stem),),
            question=text_of(question),
            references=(_yes_or_no(answer),),
            group=group,
            category=category,
        )

    try:
        lines = [line for line in read_text(path).split("\n") if line.strip()]
    except ValueError as error:
        return iter([RawItem(f"{group}/0", failure=str(error), group=group, category=category)])
    items = parse_keyed(((f"{group}/{number}", line) for number, line in enumerate(lines)), parse)
    # A malformed line still belongs to its image and category.
    return (replace(item, group=group, category=category) for item in items)


def _image_beside(folder: Path, stem: str) -> Path:
    candidates = [inside(folder, stem + ending) for ending in _IMAGES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _yes_or_no(value: Any) -> str:
    answer = text_of(value).lower()
    if answer not in _ANSWERS:
        raise ValueError(f"found the answer {answer!r}, expected yes or no")
    return answer


READERS = {
    TaskFormat.MME: read_mme,
    TaskFormat.POPE: read_pope,
}
