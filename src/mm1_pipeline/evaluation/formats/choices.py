"""Questions with options: ScienceQA, MMMU, MMBench, SEED-Bench."""

from __future__ import annotations

import ast
import base64
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mm1_pipeline.config.task_formats import MAX_IMAGES, TaskFormat
from mm1_pipeline.corpus.images import ImageSource
from mm1_pipeline.evaluation.formats.base import (
    FormatFiles,
    RawItem,
    data_files,
    letter,
    listed,
    parse_keyed,
    parse_rows,
    read_json,
    refuse_no_file,
    text_of,
)

LETTERS = "ABCD"
"""Of the options that MMBench and SEED-Bench have."""
FILE_INDEX = "file_index"
"""Fact: the row of MMBench's file that an item is."""

_DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""MMMU's six domains and their thirty subjects."""
_DOMAIN_OF = {subject: domain for domain, subjects in _DOMAINS.items() for subject in subjects}

_PASS = 1_000_000
"""MMBench numbers the rotations of a question: index, index + 1,000,000, ..."""
_SPLITS = ("dev", "validation", "test")
_HIDDEN = ("", "?")
"""How sets without public answers leave the answer open."""


def read_scienceqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions of a split that have an image, with their hint before them."""
    problems = read_json(files.paths["problems"])
    splits = read_json(files.paths["splits"])
    subset = files.subset or "test"
    if not isinstance(problems, dict):
        raise ValueError(f"Found no problems by number in {files.paths['problems']}.")
    keys = listed(splits, subset, files.paths["splits"])
    wanted = [
        (key, problems.get(key))
        for key in keys
        if not isinstance(problems.get(key), dict) or problems[key].get("image")
    ]

    def parse(key: str, row: Any) -> RawItem:
        if row is None:
            return RawItem(key=key, failure="malformed: found no such problem")
        hint = text_of(row.get("hint", ""))
        options = _options(row["choices"])
        return RawItem(
            key=key,
            # `minival` and `minitest` are parts of splits that have folders.
            images=(files.image(f"{row.get('split', subset)}/{key}/{row['image']}"),),
            question=f"Context: {hint}\n{row['question']}" if hint else text_of(row["question"]),
            references=(_right_letter(int(row["answer"]), options),),
            options=options,
            category=str(row.get("subject", "")),
        )

    return parse_keyed(wanted, parse)


def read_mmmu(files: FormatFiles) -> Iterator[RawItem]:
    """Questions of all subjects; the test set hides its answers, which leaves no reference."""
    folder = files.paths["data"]
    paths = [folder] if folder.is_file() else data_files(folder, "**/*.parquet")
    if not paths:
        raise ValueError(f"Found no Parquet file in {folder}; expected MMMU's files.")
    for path in _of_split(paths, files.subset):
        refuse_no_file(path)
        yield from parse_rows(pq.read_table(path).to_pylist(), _parse_mmmu)


def _of_split(paths: list[Path], subset: str) -> list[Path]:
    """The files of one split; all where their names do not tell it.

    Raises:
        ValueError: The names tell splits, but not this one.
    """
    named = {path: path.name.partition("-")[0] for path in paths}
    found = sorted(set(named.values()) & set(_SPLITS))
    if not subset or not found:
        return paths
    if subset not in found:
        raise ValueError(f"subset: found {subset!r}, but the files are of {', '.join(found)}.")
    return [path for path in paths if named[path] == subset]


def _parse_mmmu(row: Any) -> RawItem:
    options = _options(_list_of(row["options"]))
    answer = _list_of(row["answer"]) if str(row["answer"]).startswith("[") else [row["answer"]]
    references = tuple(str(text).strip() for text in answer if str(text).strip() not in _HIDDEN)
    if options and references and references[0] not in map(letter, range(len(options))):
        raise ValueError(f"found the answer {references[0]!r} to {len(options)} options")
    subject = re.sub("^(?:dev|validation|test)_", "", str(row["id"])).rpartition("_")[0]
    return RawItem(
        key=str(row["id"]),
        images=tuple(_embedded(row, MAX_IMAGES)),
        question=text_of(row["question"]),
        references=references,
        options=options,
        category=subject,
        facts={"domain": _DOMAIN_OF[subject]} if subject in _DOMAIN_OF else {},
    )


def _embedded(row: Any, most: int) -> Iterator[ImageSource]:
    for number in range(1, most + 1):
        image = row.get(f"image_{number}")
        if image:
            yield image["bytes"]


def read_mmbench(files: FormatFiles) -> Iterator[RawItem]:
    """Each question once for every rotation of its options: circular evaluation.

    The official files have a row for each rotation, and number them; then none is made.
    """
    csv.field_size_limit(sys.maxsize)
    refuse_no_file(files.paths["data"])
    with files.paths["data"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    has_rotations = any((_number(row.get("index")) or 0) >= _PASS for row in rows)
    images: dict[str, bytes] = {}
    for row in rows:
        for item in parse_rows([row], lambda found: _parse_mmbench(found, images)):
            yield from [item] if has_rotations else rotations(item)


def _parse_mmbench(row: Any, images: dict[str, bytes]) -> RawItem:
    index, encoded = int(row["index"]), text_of(row["image"])
    name = str(index)
    if len(encoded) < 64 and encoded in images:
        images[name] = images[encoded]  # The file names an earlier row that has the image.
    else:
        images[name] = base64.b64decode(encoded, validate=True)
    options = _options([row[option] for option in LETTERS if (row.get(option) or "").strip()])
    hint = (row.get("hint") or "").strip()
    question = text_of(row["question"])
    answer = (row.get("answer") or "").strip()
    l2 = (row.get("l2-category") or row.get("l2_category") or "").strip()
    return RawItem(
        key=f"{index % _PASS}/{index // _PASS}",
        images=(images[name],),
        question=f"{hint}\n{question}" if hint else question,
        references=() if answer in _HIDDEN else (_right_letter(LETTERS.index(answer), options),),
        options=options,
        group=str(index % _PASS),
        category=str(row.get("category", "")),
        facts={FILE_INDEX: name, **({"l2_category": l2} if l2 else {})},
    )


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() else None


def rotations(item: RawItem) -> Iterator[RawItem]:
    """The item with its options rotated in every way; one that failed stays as it is.

    The first rotation is the item of the file.
    """
    if item.failure is not None or not item.options:
        yield item
        return
    count = len(item.options)
    for shift in range(count):
        right = [letter((ord(found) - ord("A") - shift) % count) for found in item.references]
        yield RawItem(
            key=f"{item.group}/{shift}",
            images=item.images,
            question=item.question,
            references=tuple(right),
            options=(*item.options[shift:], *item.options[:shift]),
            group=item.group,
            category=item.category,
            facts={
                name: value
                for name, value in item.facts.items()
                if shift == 0 or name != FILE_INDEX
            },
        )


def read_seed(files: FormatFiles) -> Iterator[RawItem]:
    """Questions on images and, unless the subset is `image`, on one frame of videos.

    A video's frame is `<question_id>.png` in the folder of the images, as others extract it: our
    choice, because the videos are no images.
    """
    path = files.paths["questions"]
    content = read_json(path)
    questions = listed(content, "questions", path)
    kinds = {number: name for name, number in content.get("question_type", {}).items()}

    def parse(row: Any) -> RawItem:
        options = _options([row[f"choice_{name}"] for name in "abcd"])
        is_image = row["data_type"] == "image"
        return RawItem(
            key=str(row["question_id"]),
            images=(files.image(row["data_id"] if is_image else f"{row['question_id']}.png"),),
            question=text_of(row["question"]),
            references=(_right_letter(LETTERS.index(row["answer"]), options),),
            options=options,
            category=str(kinds.get(row["question_type_id"], row["question_type_id"])),
            facts={"data_type": str(row["data_type"])},
        )

    rows = [
        row
        for row in questions
        if files.subset != "image" or not isinstance(row, dict) or row.get("data_type") != "video"
    ]
    return parse_rows(rows, parse)


def _options(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"found options of type {type(values).__name__}, expected a list")
    return tuple(str(value).strip() for value in values)


def _right_letter(index: int, options: tuple[str, ...]) -> str:
    if not 0 <= index < len(options):
        raise ValueError(f"found {letter(index)!r} as answer to {len(options)} options")
    return letter(index)


def _list_of(value: Any) -> list[Any]:
    """A list, or the text of one, as MMMU's columns hold it."""
    parsed = ast.literal_eval(value) if isinstance(value, str) else value
    if not isinstance(parsed, list | tuple):
        raise TypeError(f"found {type(parsed).__name__}, expected a list")
    return list(parsed)


READERS = {
    TaskFormat.SCIENCEQA: read_scienceqa,
    TaskFormat.MMMU: read_mmmu,
    TaskFormat.MMBENCH: read_mmbench,
    TaskFormat.SEED: read_seed,
}
