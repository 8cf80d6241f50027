"""Open answers that need extraction or a judge: MathVista, LLaVA-Bench, MM-Vet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_pipeline.annotations.json_files import all_pairs
from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats.base import (
    FormatFiles,
    RawItem,
    parse_keyed,
    parse_rows,
    read_json,
    read_json_lines,
    text_of,
)


def read_mathvista(files: FormatFiles) -> Iterator[RawItem]:
    """Problems by number; images are named from the folder that holds `images/`."""
    content = read_json(files.paths["annotations"])
    if not isinstance(content, dict):
        raise ValueError(
            f"Found no problems by number in {files.paths['annotations']}; expected testmini.json."
        )

    def parse(key: str, row: Any) -> RawItem:
        unit = row.get("unit")
        question = text_of(row["question"])
        return RawItem(
            key=key,
            images=(files.image(str(row["image"]).removeprefix("images/")),),
            question=f"{question} (Unit: {unit})" if unit else question,
            # Blanks around them count in the official distance of edits.
            references=(str(row["answer"]),) if text_of(row["answer"]) else (),
            options=tuple(map(str, row.get("choices") or ())),
            category=str(row.get("metadata", {}).get("task", "")),
            facts={
                "answer_type": text_of(row["answer_type"]),
                "precision": str(int(row.get("precision") or 0)),
            },
        )

    return parse_keyed(all_pairs(content), parse)


def read_llava_w(files: FormatFiles) -> Iterator[RawItem]:
    """Questions with the reference answer, and the description of the image for the judge."""
    context = _by_field(files.paths["context"], "image", "caption")
    references = _by_field(files.paths["references"], "question_id", "text")

    def parse(row: Any) -> RawItem:
        for found, name in ((context, "image"), (references, "question_id")):
            if row[name] not in found:
                raise ValueError(f"found no description or reference answer for {row[name]!r}")
        return RawItem(
            key=str(row["question_id"]),
            images=(files.image(row["image"]),),
            question=text_of(row["text"]),
            references=(references[row["question_id"]],),
            category=str(row.get("category", "")),
            facts={"context": context[row["image"]]},
        )

    return parse_rows(read_json_lines(files.paths["questions"]), parse)


def _by_field(path: Path, key: str, value: str) -> dict[Any, str]:
    """Texts of JSON lines by another field; lines that lack one fail with the question they miss.

    A description may be a list of sentences.
    """
    found: dict[Any, str] = {}
    for row in read_json_lines(path):
        if isinstance(row, dict) and isinstance(row.get(key), str | int):
            texts = row.get(value)
            lines = texts if isinstance(texts, list) else [texts]
            sentences = [line for line in lines if isinstance(line, str)]
            if sentences and len(sentences) == len(lines):
                found[row[key]] = "\n".join(sentences).strip()
    return found


def read_mm_vet(files: FormatFiles) -> Iterator[RawItem]:
    """Questions by number, with the skills that each needs."""
    content = read_json(files.paths["annotations"])
    if not isinstance(content, dict):
        raise ValueError(f"Found no questions in {files.paths['annotations']}; see mm-vet.json.")

    def parse(key: str, row: Any) -> RawItem:
        return RawItem(
            key=key,
            images=(files.image(row["imagename"]),),
            question=text_of(row["question"]),
            references=(text_of(row["answer"]),),
            category="+".join(sorted(map(str, row.get("capability", [])))),
        )

    return parse_keyed(all_pairs(content), parse)


READERS = {
    TaskFormat.MATHVISTA: read_mathvista,
    TaskFormat.LLAVA_W: read_llava_w,
    TaskFormat.MM_VET: read_mm_vet,
}
