"""Reads VQAv2 and OKVQA: a JSON file of questions, one of annotations, and images called by number.

Unit of `read`: one question; an annotation without question is one unit as well. In evaluation
sources all human answers are references; in training sources the question goes into the source's
prompt, and the commonest answer is the assistant's turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from mm1_pipeline.config.conversation_prompts import fill
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers.annotations import (
    NumberedImages,
    entries,
    image_folder_problems,
    index_by,
    open_image_folder,
    read_json,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    read_guarded,
    read_one,
)
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.ground.rejects import Reason, Rejected

_COPIED = ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer")


def read(source: Source) -> Iterator[Found]:
    """Reads all annotation files, then the questions."""
    images = NumberedImages(open_image_folder(source))
    annotations: dict[str, dict[str, Any] | Rejected] = {}
    for file in source.files:
        if is_annotation_file(file):
            yield from read_guarded(source, file, partial(_collect_annotations, annotations))
    asked: set[str] = set()
    for file in source.files:
        if is_question_file(file):
            read_questions = partial(_read_questions, images, annotations, asked)
            yield from read_guarded(source, file, read_questions)
    for question_id in annotations:
        if question_id not in asked:
            yield RejectedRecord(
                f"annotation_{question_id}", Rejected(Reason.ANNOTATION_WITHOUT_QUESTION)
            )


def is_question_file(file: SourceFile) -> bool:
    """Whether a JSON file holds questions, by its name, as VQAv2 names them."""
    return "questions" in file.name.rsplit("/", 1)[-1].lower()


def is_annotation_file(file: SourceFile) -> bool:
    """Whether a JSON file holds annotations, by its name, as VQAv2 names them."""
    return "annotations" in file.name.rsplit("/", 1)[-1].lower()


def problems(source: Source) -> list[str]:
    """Which of the two kinds of files is missing, and the images."""
    halves = (("questions", is_question_file), ("annotations", is_annotation_file))
    place = f"in {source.config.path!r}, {source.config.format.expected}"
    missing = [
        f"{source.parameter('path')}: found no file of {half} {place}."
        for half, is_half in halves
        if not any(map(is_half, source.files))
    ]
    return missing + image_folder_problems(source)


def _collect_annotations(
    annotations: dict[str, dict[str, Any] | Rejected], source: Source, file: SourceFile
) -> Iterator[Item]:
    found = entries(read_json(source, file), "annotations")
    for question_id, annotation in index_by(found, "question_id"):
        if isinstance(annotation, Rejected):
            yield RejectedRecord(f"{file.key}/{question_id}", annotation)
        elif question_id not in annotations:
            annotations[question_id] = annotation
        else:
            found = f"found question_id {question_id!r} in an earlier file as well"
            why = Rejected(Reason.DUPLICATE_KEY, found)
            yield RejectedRecord(f"{file.key}/annotation_{question_id}", why)
            if annotations[question_id] != annotation:  # whose answers are meant nobody can tell
                annotations[question_id] = why


def _read_questions(
    images: NumberedImages,
    annotations: dict[str, dict[str, Any] | Rejected],
    asked: set[str],
    source: Source,
    file: SourceFile,
) -> Iterator[Item]:
    questions = entries(read_json(source, file), "questions")
    source.files.expected_records = len(questions) + (source.files.expected_records or 0)
    for question_id, question in index_by(questions, "question_id"):
        key = f"{file.key}/{question_id}"
        asked.add(question_id)
        annotation = annotations.get(question_id)
        yield read_one(key, partial(_to_record, images, source, key, question, annotation))


def _to_record(
    images: NumberedImages,
    source: Source,
    key: str,
    question: dict[str, Any] | Rejected,
    annotation: dict[str, Any] | Rejected | None,
) -> RawRecord:
    for half in (question, annotation):
        if isinstance(half, Rejected):
            raise half
    assert isinstance(question, dict), "what is none is rejected"
    text = question.get("question")
    if not isinstance(text, str) or not text.strip():
        raise Rejected(Reason.TEXT_MISSING, "found no text in the field 'question'")
    if not isinstance(annotation, dict):
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION)
    answers = _answers(annotation)
    if not source.is_evaluation:
        text = fill(source.config.conversation_prompt, text)
    segments = [Segment.of_image(0, Role.HUMAN), Segment.of_text(text, Role.HUMAN)]
    if not source.is_evaluation:
        segments.append(Segment.of_text(_chosen_answer(annotation, answers), Role.ASSISTANT))
    merged = {**annotation, **question}
    metadata = {name: merged[name] for name in _COPIED if name in merged}
    references = tuple(answers) if source.is_evaluation else ()
    image = images.find(question.get("image_id"))
    return RawRecord(key, tuple(segments), (image,), references, metadata)


def _answers(annotation: dict[str, Any]) -> list[str]:
    found = annotation.get("answers")
    answers = found if isinstance(found, list) else []
    texts = [item.get("answer") if isinstance(item, dict) else item for item in answers]
    usable = [text for text in texts if isinstance(text, str) and text.strip()]
    if not usable:
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, "found an annotation without answers")
    return usable


def _chosen_answer(annotation: dict[str, Any], answers: list[str]) -> str:
    chosen = annotation.get("multiple_choice_answer")
    if isinstance(chosen, str) and chosen.strip():
        return chosen
    return Counter(answers).most_common(1)[0][0]


READERS = {SourceFormat.VQA_V2: Reader(read, problems)}
