"""Open questions with short answers: VQAv2, OK-VQA, TextVQA, VizWiz, GQA, DocVQA, ChartQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats.base import (
    FormatFiles,
    RawItem,
    parse_keyed,
    parse_rows,
    read_json,
    read_json_lines,
    read_table,
    text_of,
)


def read_vqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions and the answers of ten people, in two files joined by question."""
    annotations = _annotations(files.paths.get("annotations"))

    def parse(row: Any) -> RawItem:
        annotation = annotations.get(row["question_id"])
        if annotation is None and files.hides_answers:
            annotation = {"answers": ()}
        if annotation is None:
            raise ValueError("found no annotation of this question")
        return RawItem(
            key=str(row["question_id"]),
            images=(files.numbered_image(row["image_id"]),),
            question=text_of(row["question"]),
            references=tuple(text_of(answer["answer"]) for answer in annotation["answers"]),
            category=str(annotation.get("answer_type", "")),
        )

    return parse_rows(read_table(files.paths["questions"], "questions"), parse)


def _annotations(path: Path | None) -> dict[Any, Any]:
    """Annotations by question; none where the test set has none."""
    if path is None:
        return {}
    return {
        row["question_id"]: row
        for row in read_table(path, "annotations")
        if isinstance(row, dict) and "question_id" in row
    }


def read_textvqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions on images of Open Images, with ten answers each."""

    def parse(row: Any) -> RawItem:
        return RawItem(
            key=str(row["question_id"]),
            images=(files.image(f"{row['image_id']}.jpg"),),
            question=text_of(row["question"]),
            references=tuple(text_of(answer) for answer in files.answers(row, "answers")),
        )

    return parse_rows(read_table(files.paths["annotations"], "data"), parse)


def read_vizwiz(files: FormatFiles) -> Iterator[RawItem]:
    """One question a photo, with ten answers; `unanswerable` is an answer like any other."""

    def parse(row: Any) -> RawItem:
        return RawItem(
            key=str(row["image"]),
            images=(files.image(row["image"]),),
            question=text_of(row["question"]),
            references=tuple(text_of(answer["answer"]) for answer in files.answers(row, "answers")),
            category=str(row.get("answer_type", "")),
        )

    return parse_rows(read_json_lines(files.paths["annotations"]), parse)


def read_gqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions by their number, with one answer each."""
    path = files.paths["questions"]
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"Found no questions by number in {path}; expected the official format.")

    def parse(key: str, row: Any) -> RawItem:
        return RawItem(
            key=key,
            images=(files.image(f"{row['imageId']}.jpg"),),
            question=text_of(row["question"]),
            references=(text_of(answer),) if (answer := files.answers(row, "answer")) else (),
            category=str(row.get("types", {}).get("structural", "")),
        )

    return parse_keyed(content.items(), parse)


def read_docvqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions on scanned pages or infographics, with every accepted answer."""

    def parse(row: Any) -> RawItem:
        # InfographicVQA names the file in another field.
        name = str(row["image"] if "image" in row else row["image_local_name"])
        return RawItem(
            key=str(row["questionId"]),
            images=(files.image(name.removeprefix("documents/")),),
            question=text_of(row["question"]),
            references=tuple(text_of(answer) for answer in files.answers(row, "answers")),
        )

    return parse_rows(read_table(files.paths["annotations"], "data"), parse)


def read_chartqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions on charts; they have no number, so their place in the file is their key."""

    def parse(key: str, row: Any) -> RawItem:
        return RawItem(
            key=key,
            images=(files.image(row["imgname"]),),
            question=text_of(row["query"]),
            references=(text_of(row["label"]),),
        )

    return parse_keyed(enumerate(read_json_lines(files.paths["annotations"])), parse)


READERS = {
    TaskFormat.VQA: read_vqa,
    TaskFormat.TEXTVQA: read_textvqa,
    TaskFormat.VIZWIZ: read_vizwiz,
    TaskFormat.GQA: read_gqa,
    TaskFormat.DOCVQA: read_docvqa,
    TaskFormat.CHARTQA: read_chartqa,
}
