"""Questions about images, in the files that the authors of data sets publish.

    gqa         {question id: {imageId, question, answer, types, ...}}
    vqa         {questions: [{question_id, image_id, question}]} and, in a second file,
                {annotations: [{question_id, answers: [{answer}], multiple_choice_answer, ...}]}
    text_vqa    {data: [{question_id, image_id, question, answers, ...}]}
    viz_wiz     [{image, question, answers: [{answer}], answer_type, ...}]
    doc_vqa     {data: [{questionId, image, question, answers, ...}]}; InfographicVQA's images are
                under image_local_name
    chart_qa    [{imgname, query, label}]
    dvqa        [{question_id, image, question, answer, ...}]
    a_okvqa     [{question_id, image_id, question, choices, correct_choice_idx, direct_answers}]
    ocr_vqa     {key: {questions, answers, split, imageURL, ...}}
    ai2d        a file an image: {imageName, questions: {text: {answerTexts, correctAnswer}}}

OK-VQA comes in VQAv2's two files. A list under a name may also be the whole file, or JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from mm1_pipeline.annotations.json_files import all_pairs
from mm1_pipeline.annotations.records import (
    Asked,
    Entry,
    Found,
    ImageCall,
    ImageName,
    PassedOver,
    Question,
    RejectedEntry,
    as_rejected,
    asked_text,
    by_identifier,
    by_name,
    index_by,
    mark_repeated,
    parse_entries,
    some,
    table,
    text_of,
    texts,
)
from mm1_pipeline.ground.rejects import Passed, Reason, Rejected

_VQA_METADATA = (
    "question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a file.

    Attributes:
        hides_answers: Whether entries may lack answers, as those of test sets do.
        is_training: Which part is wanted of a file that holds all splits.
        subset: The split that is wanted by name; all where it is empty.
    """

    hides_answers: bool = False
    is_training: bool = False
    subset: str = ""


EVERYTHING = Wanted()
Read = Callable[[Any, Wanted], Iterator[Found]]
"""Gives what the content of one file says, in its order. Raises Rejected if it is no such file."""


class VqaAnnotations:
    """The answers of VQAv2 and OK-VQA, which lie in files of their own."""

    def __init__(self) -> None:
        self._by_question: dict[str, Entry | Rejected] = {}
        self._asked: set[str] = set()

    def add(self, content: Any) -> Iterator[RejectedEntry]:
        """Takes in a file of annotations.

        Yields:
            Annotations of no question, and second ones of one: whose answers are meant, if they
            differ, nobody can tell, and the question is rejected as well.
        """
        for key, row, _ in index_by(table(content, "annotations"), "question_id"):
            earlier = self._by_question.get(key)
            if isinstance(row, Rejected):
                yield RejectedEntry(f"annotation_{key}", row, is_asked=False)
            elif earlier is None:
                self._by_question[key] = row
            else:
                why = Rejected(Reason.DUPLICATE_KEY, f"found several annotations of {key!r}")
                yield RejectedEntry(f"annotation_{key}", why, is_asked=False)
                if earlier != row:
                    self._by_question[key] = why

    def ask(self, content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
        """The questions of a file, with their answers."""
        for key, row, repeats in index_by(table(content, "questions"), "question_id"):
            self._asked.add(key)
            try:
                if isinstance(row, Rejected):
                    raise row
                yield self._join(key, row, wanted, repeats)
            except MemoryError:
                raise
            except Exception as error:
                yield RejectedEntry(key, as_rejected(error))

    def unasked(self) -> Iterator[RejectedEntry]:
        """Annotations whose question no file holds."""
        for key in self._by_question.keys() - self._asked:
            why = Rejected(Reason.ANNOTATION_WITHOUT_QUESTION)
            yield RejectedEntry(f"annotation_{key}", why, is_asked=False)

    def _join(self, key: str, row: Entry, wanted: Wanted, repeats: bool) -> Asked:
        text = asked_text(row, "question")
        annotation = self._by_question.get(key)
        if isinstance(annotation, Rejected):
            raise annotation
        if annotation is None:
            if not wanted.hides_answers:
                found = "found no annotation of this question"
                raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, found)
            annotation = {}
        answers = some(texts(annotation, "answers"), hides_answers=wanted.hides_answers)
        chosen = annotation.get("multiple_choice_answer")
        chosen = None if chosen is None else text_of(chosen, "'multiple_choice_answer'")
        merged = {**annotation, **row}
        return Asked(
            key,
            ImageName(row.get("image_id"), ImageCall.NUMBER),
            (Question(text, answers, chosen=chosen),),
            _word(annotation, "answer_type"),
            {name: merged[name] for name in _VQA_METADATA if name in merged},
            repeats,
        )


def _gqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    kinds = entry.get("types")
    category = _word(kinds, "structural") if isinstance(kinds, dict) else ""
    image = ImageName(entry.get("imageId"), ImageCall.STEM)
    return _one(key, entry, image, _answer(wanted, entry, "answer"), category=category)


def _text_vqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    image = ImageName(entry.get("image_id"), ImageCall.STEM)
    return _one(key, entry, image, _answers(wanted, entry, "answers"))


def _viz_wiz(wanted: Wanted, key: str, entry: Entry) -> Asked:
    answers = _answers(wanted, entry, "answers")
    category = _word(entry, "answer_type")
    return _one(key, entry, ImageName(entry.get("image")), answers, category=category)


def _doc_vqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    # Where both are there, the one that says of itself that it names the file does.
    local = entry.get("image_local_name")
    name = entry.get("image") if local is None else local
    return _one(key, entry, ImageName(name, ImageCall.PAGE), _answers(wanted, entry, "answers"))


def _chart_qa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    # An empty label answers nothing: not what is drawn in a chart without it, nor any question.
    answers = _answer(wanted, entry, "label")
    return _one(key, entry, ImageName(entry.get("imgname")), answers, asked="query")


def _dvqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    return _one(key, entry, ImageName(entry.get("image")), _answer(wanted, entry, "answer"))


def _one(
    key: str,
    entry: Entry,
    image: ImageName,
    answers: tuple[str, ...],
    *,
    asked: str = "question",
    category: str = "",
) -> Asked:
    question = Question(asked_text(entry, asked), answers)
    return Asked(key, image, (question,), category, {"question_id": key})


def _answer(wanted: Wanted, entry: Entry, field_name: str) -> tuple[str, ...]:
    if wanted.hides_answers and not entry.get(field_name):
        return ()
    return (asked_text(entry, field_name),)


def _answers(wanted: Wanted, entry: Entry, field_name: str) -> tuple[str, ...]:
    return some(texts(entry, field_name), hides_answers=wanted.hides_answers)


def _a_okvqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    choices = texts(entry, "choices")
    correct = _index(entry.get("correct_choice_idx"), choices)
    answers = texts(entry, "direct_answers")
    if not any(answers) and correct is not None:
        answers = (choices[correct],)
    answers = some(answers, hides_answers=wanted.hides_answers)
    question = Question(asked_text(entry, "question"), answers, choices, correct)
    image = ImageName(entry.get("image_id"), ImageCall.NUMBER)
    return Asked(key, image, (question,), metadata={"question_id": key})


def _ocr_vqa(wanted: Wanted, key: str, entry: Entry) -> Asked:
    asked, answers = texts(entry, "questions"), texts(entry, "answers")
    if not asked or (len(asked) != len(answers) and not wanted.hides_answers):
        found = f"found {len(asked)} questions and {len(answers)} answers"
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, found)
    if not all(asked):
        raise Rejected(Reason.TEXT_MISSING, f"found no text in 'questions'[{asked.index('')}]")
    if not all(answers):
        found = f"found no text in 'answers'[{answers.index('')}]"
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, found)
    questions = tuple(
        Question(text, (answers[place],) if answers else ()) for place, text in enumerate(asked)
    )
    metadata = {name: entry[name] for name in ("title", "genre") if name in entry}
    return Asked(key, ImageName(key, ImageCall.STEM), questions, metadata=metadata)


def _ai2d(wanted: Wanted, key: str, entry: Entry) -> Asked:
    found = entry.get("questions")
    if not isinstance(found, dict) or not found:
        raise Rejected(Reason.TEXT_MISSING, "found no question")
    questions = []
    for text, content in all_pairs(found):
        content = content if isinstance(content, dict) else {}
        choices = texts(content, "answerTexts")
        correct = _index(content.get("correctAnswer"), choices)
        if correct is None and not wanted.hides_answers:
            raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, f"found no right option of {text!r}")
        answers = () if correct is None else (choices[correct],)
        questions.append(Question(text_of(text, "a question"), answers, choices, correct))
    image = ImageName(entry.get("imageName"))
    return Asked(key, image, tuple(questions), metadata={"image_name": key})


def _index(value: Any, choices: tuple[str, ...]) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    return None


def _word(entry: Entry, field_name: str) -> str:
    found = entry.get(field_name)
    return found if isinstance(found, str) else ""


def _reader(
    entries: Callable[[Any], Iterator[tuple[str, Any]]],
    parse: Callable[[Wanted, str, Entry], Asked],
) -> Read:
    def read(content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
        return mark_repeated(parse_entries(entries(content), partial(parse, wanted)))

    return read


def _rows(field_name: str, name: str = "data") -> Callable[[Any], Iterator[tuple[str, Any]]]:
    return lambda content: by_identifier(table(content, name), field_name)


def _listed(field_name: str) -> Callable[[Any], Iterator[tuple[str, Any]]]:
    return lambda content: by_identifier(content, field_name)


def _by_place(content: Any) -> Iterator[tuple[str, Any]]:
    for place, (_, entry) in enumerate(by_identifier(content, "")):
        yield str(place), entry


def _whole(content: Any) -> Iterator[tuple[str, Any]]:
    return by_identifier([content], "imageName")


def read_ocr_vqa(content: Any, wanted: Wanted = EVERYTHING) -> Iterator[Found]:
    """OCR-VQA keeps all splits in one file: 1 is training, 2 validation, 3 test."""
    splits = (1,) if wanted.is_training else (2, 3)

    def read() -> Iterator[Found]:
        for key, entry in by_name(content):
            if isinstance(entry, dict) and entry.get("split", splits[0]) not in splits:
                yield PassedOver(Passed.OTHER_ENTRY)
            else:
                yield from parse_entries([(key, entry)], partial(_ocr_vqa, wanted))

    return mark_repeated(read())


read_gqa = _reader(by_name, _gqa)
read_text_vqa = _reader(_rows("question_id"), _text_vqa)
read_viz_wiz = _reader(_listed("image"), _viz_wiz)
read_doc_vqa = _reader(_rows("questionId"), _doc_vqa)
read_chart_qa = _reader(_by_place, _chart_qa)
read_dvqa = _reader(_listed("question_id"), _dvqa)
read_a_okvqa = _reader(_listed("question_id"), _a_okvqa)
read_ai2d = _reader(_whole, _ai2d)
