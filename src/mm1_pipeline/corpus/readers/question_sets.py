"""Reads the named academic sets of SFT; their files are those of `annotations.questions`.

Unit of `read`: one entry; in VQAv2 and OK-VQA one question, and an annotation without question. In
training sources the prompt (see `config.conversation_prompts`) is the human's turn and the answer
the assistant's; where an image's questions lie in one entry (OCR-VQA, AI2D) they become the turns
of one conversation. In evaluation sources each question is a record, its answers are references,
and options and the right one are in the metadata. A second entry of a key is rejected: the two
would share a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from mm1_pipeline.annotations import questions
from mm1_pipeline.annotations import records as found_in_files
from mm1_pipeline.annotations.questions import VqaAnnotations, Wanted
from mm1_pipeline.annotations.records import Asked, PassedOver, Question, RejectedEntry, table
from mm1_pipeline.config.conversation_prompts import CHOICES, fill, option_letter
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.readers.annotations import (
    annotated_image,
    image_folder_problems,
    open_image_folder,
    read_json_value,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    read_each_file,
    read_guarded,
)
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.ground.rejects import Reason, Rejected

SECOND = Rejected(Reason.DUPLICATE_KEY, "found a second entry of this name")


def _read_files(read_content: questions.Read, source: Source) -> Iterator[Found]:
    """Reads all files of a set."""
    images = AnnotatedImages(open_image_folder(source))
    wanted = Wanted(is_training=not source.is_evaluation)

    def read_file(source: Source, file: SourceFile) -> Iterator[Found]:
        entries = read_content(read_json_value(source, file), wanted)
        return _to_records(images, source, file, entries)

    return read_each_file(source, read_file)


def _read_vqa(source: Source) -> Iterator[Found]:
    """Reads all annotation files, then the questions."""
    images, annotations = AnnotatedImages(open_image_folder(source)), VqaAnnotations()

    def read_annotations(source: Source, file: SourceFile) -> Iterator[Found]:
        entries = annotations.add(read_json_value(source, file))
        return _to_records(images, source, file, entries)

    def read_questions(source: Source, file: SourceFile) -> Iterator[Found]:
        rows = table(read_json_value(source, file), "questions")
        source.files.expected_records = len(rows) + (source.files.expected_records or 0)
        return _to_records(images, source, file, annotations.ask(rows))

    for is_of_kind, read_file in (
        (is_annotation_file, read_annotations),
        (is_question_file, read_questions),
    ):
        for file in source.files:
            if is_of_kind(file):
                yield from read_guarded(source, file, read_file)
    for rejected in annotations.unasked():
        yield RejectedRecord(rejected.key, rejected.why)


def is_question_file(file: SourceFile) -> bool:
    """Whether a JSON file holds questions, by its name, as VQAv2 names them."""
    return "questions" in file.name.rsplit("/", 1)[-1].lower()


def is_annotation_file(file: SourceFile) -> bool:
    """Whether a JSON file holds annotations, by its name, as VQAv2 names them."""
    return "annotations" in file.name.rsplit("/", 1)[-1].lower()


def _vqa_problems(source: Source) -> list[str]:
    """Which of the two kinds of files is missing, and the images."""
    halves = (("questions", is_question_file), ("annotations", is_annotation_file))
    place = f"in {source.config.path!r}, {source.config.format.expected}"
    missing = [
        f"{source.parameter('path')}: found no file of {half} {place}."
        for half, is_half in halves
        if not any(map(is_half, source.files))
    ]
    return missing + image_folder_problems(source)


def _to_records(
    images: AnnotatedImages,
    source: Source,
    file: SourceFile,
    entries: Iterable[found_in_files.Found],
) -> Iterator[Found]:
    to_records = _ask if source.is_evaluation else _teach
    for entry in entries:
        if isinstance(entry, PassedOver):
            yield entry
            continue
        key = f"{file.key}/{entry.key}"
        if isinstance(entry, RejectedEntry):
            yield RejectedRecord(key, entry.why)
        elif entry.repeats:
            yield RejectedRecord(key, SECOND)
        else:
            assert isinstance(entry, Asked), entry
            try:
                records = list(to_records(images, source, key, entry))
            except Rejected as why:
                yield RejectedRecord(key, why)
            else:
                yield from records


def _ask(images: AnnotatedImages, source: Source, key: str, asked: Asked) -> Iterator[RawRecord]:
    """A record of each question, whose answers are references."""
    del source
    image = annotated_image(images, asked.image)
    for number, question in enumerate(asked.questions):
        segments = (Segment.of_image(0, Role.HUMAN), Segment.of_text(question.text, Role.HUMAN))
        metadata = {**asked.metadata, "choices": question.choices}
        if question.correct is not None:
            metadata["correct"] = question.correct
        own_key = f"{key}/{number}" if len(asked.questions) > 1 else key
        yield RawRecord(own_key, segments, (image,), question.answers, metadata)


def _teach(images: AnnotatedImages, source: Source, key: str, asked: Asked) -> Iterator[RawRecord]:
    """One conversation of all questions and their answers."""
    template = source.config.conversation_prompt
    turns: list[Segment] = [Segment.of_image(0, Role.HUMAN)]
    for question in asked.questions:
        prompt = fill(template, question.text, question.choices)
        turns.append(Segment.of_text(prompt, Role.HUMAN))
        turns.append(Segment.of_text(_best_answer(question, template), Role.ASSISTANT))
    image = annotated_image(images, asked.image)
    yield RawRecord(key, tuple(turns), (image,), metadata=asked.metadata)


def _best_answer(question: Question, template: str) -> str:
    """The right option's letter where the prompt lists options, else the commonest answer."""
    if CHOICES not in template:
        return question.commonest
    if question.correct is None:
        found = "found no right option, which the prompt asks for"
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, found)
    return option_letter(question.correct)


_READ: dict[SourceFormat, questions.Read] = {
    SourceFormat.GQA: questions.read_gqa,
    SourceFormat.A_OKVQA: questions.read_a_okvqa,
    SourceFormat.OCR_VQA: questions.read_ocr_vqa,
    SourceFormat.DVQA: questions.read_dvqa,
    SourceFormat.CHART_QA: questions.read_chart_qa,
    SourceFormat.AI2D: questions.read_ai2d,
    SourceFormat.DOC_VQA: questions.read_doc_vqa,
}
_read_sets: dict[SourceFormat, Callable[[Source], Iterator[Found]]] = {
    name: partial(_read_files, read) for name, read in _READ.items()
}
READERS = {
    **{name: Reader(read, image_folder_problems) for name, read in _read_sets.items()},
    SourceFormat.VQA_V2: Reader(_read_vqa, _vqa_problems),
}
