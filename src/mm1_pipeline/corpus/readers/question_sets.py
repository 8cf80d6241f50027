"""Reads the named academic sets of SFT in the files that their authors publish.

    gqa         *questions*.json   {question id: {imageId, question, answer, ...}}
    a_okvqa     *aokvqa*.json      [{question_id, image_id, question, choices, ...}]
    ocr_vqa     dataset.json       {key: {questions, answers, split, imageURL, ...}}
    dvqa        *qa*.json          [{question_id, image, question, answer, ...}]
    chart_qa    *.json             [{imgname, query, label}]
    ai2d        *.json, one each   {imageName, questions: {text: {answerTexts, ...}}}
    doc_vqa     *.json             {data: [{questionId, image, question, answers, ...}]}
    text_caps   *TextCaps*.json    {data: [{image_id, caption_str, ...}]}

`doc_vqa` reads InfoVQA as well, whose images are under `image_local_name`. OKVQA comes in
VQAv2's two files and needs no reader of its own.

Unit of `read`: one entry. In training sources the prompt (see `config.conversation_prompts`)
is the human's turn and the answer the assistant's; where an image's questions lie in one entry
(OCR-VQA, AI2D) they become the turns of one conversation. In evaluation sources each question
is a record, its answers are references, and options and the right one are in the metadata.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mm1_pipeline.config.conversation_prompts import CHOICES, fill, option_letter
from mm1_pipeline.config.ingest import SourceSplit
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.corpus.files import ImageFolder, SourceFile
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.corpus.json_streams import all_pairs
from mm1_pipeline.corpus.quarantine import Passed, Reason, Rejected
from mm1_pipeline.corpus.readers.annotations import (
    NumberedImages,
    as_name,
    entries,
    image_by_name,
    image_folder_problems,
    open_image_folder,
    read_json_value,
)
from mm1_pipeline.corpus.readers.base import (
    Found,
    Item,
    PassedOver,
    RawImage,
    RawRecord,
    Reader,
    RejectedRecord,
    Source,
    caption_record,
    read_each_file,
    record_fault,
    without_doubles,
)
from mm1_pipeline.corpus.records import Role, Segment

Entry = dict[str, Any]


class _Images:
    """Images of a set by file name, by name without suffix, or by number."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        self._numbered: NumberedImages | None = None
        self._by_stem: dict[str, list[str]] | None = None

    def named(self, name: Any) -> RawImage:
        return image_by_name(self._folder, name)

    def numbered(self, number: Any) -> RawImage:
        self._numbered = self._numbered or NumberedImages(self._folder)
        return self._numbered.find(number)

    def with_stem(self, stem: Any) -> RawImage:
        """The image called `<stem>.<any suffix of images>`."""
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for name in self._folder.names:
                path = PurePosixPath(name)
                if path.suffix[1:].lower() in IMAGE_SUFFIXES:
                    self._by_stem[unicodedata.normalize("NFC", path.stem)].append(name)
        if as_name(stem) is None:
            found = f"found an image of the name {stem!r:.100}, expected a number or text"
            return RawImage.refused(Rejected(Reason.MALFORMED_RECORD, found))
        names = self._by_stem.get(unicodedata.normalize("NFC", str(stem)), [f"{stem}.jpg"])
        if len(names) > 1:
            found = f"found {len(names)} files, as {', '.join(names[:3])}, for image {stem!r}"
            return RawImage.refused(Rejected(Reason.IMAGE_AMBIGUOUS, found))
        return self.named(names[0])

    def named_below(self, name: Any) -> RawImage:
        """The image of a name, or else one of that name in any folder, with any suffix."""
        if not isinstance(name, str) or "/" not in name:
            return self.named(name)
        try:
            return self.named(self._folder.resolve(name))
        except Rejected:
            return self.with_stem(PurePosixPath(name).stem)


@dataclass(frozen=True, slots=True)
class _Question:
    """One question: free answers, or options of which one is right."""

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    correct: int | None = None


@dataclass(frozen=True, slots=True)
class _Example:
    """An image and what is asked of it."""

    image: RawImage
    questions: tuple[_Question, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class _Layout(NamedTuple):
    """How a set lies in its files."""

    find: Callable[[Any], Iterator[tuple[str, Any]]]
    """Key and content of each entry of a file."""
    read: Callable[[_Images, str, Entry], _Example]
    """The example behind an entry; raises Rejected."""
    is_of_split: Callable[[Any, SourceSplit], bool] = lambda _entry, _split: True
    """Whether an entry belongs to a split, where one file holds all."""


_ReadContent = Callable[[_Images, Source, SourceFile, Any], Iterator[Found]]
"""Gives the records of one file's content."""


def _read_files(read_content: _ReadContent, source: Source) -> Iterator[Found]:
    """Reads all files of a set."""
    images = _Images(open_image_folder(source))

    def read_file(source: Source, file: SourceFile) -> Iterator[Found]:
        content = read_json_value(source, file)
        return without_doubles(read_content(images, source, file, content))

    return read_each_file(source, read_file)


def _read_entries(
    layout: _Layout, images: _Images, source: Source, file: SourceFile, content: Any
) -> Iterator[Found]:
    for name, entry in layout.find(content):
        if not layout.is_of_split(entry, source.config.split):
            yield PassedOver(Passed.OTHER_ENTRY)
            continue
        key = f"{file.key}/{name}"
        try:
            if not isinstance(entry, dict):
                found = f"found {type(entry).__name__}, expected an object"
                raise Rejected(Reason.MALFORMED_RECORD, found)
            records = list(_to_records(source, key, layout.read(images, name, entry)))
        except Exception as error:
            yield RejectedRecord(key, record_fault(error))
        else:
            yield from records


def _to_records(source: Source, key: str, example: _Example) -> Iterator[RawRecord]:
    if source.is_evaluation:
        several = len(example.questions) > 1
        for number, question in enumerate(example.questions):
            segments = (
                Segment.of_image(0, Role.HUMAN),
                Segment.of_text(question.text, Role.HUMAN),
            )
            metadata = {**example.metadata, "choices": question.choices}
            if question.correct is not None:
                metadata["correct"] = question.correct
            own_key = f"{key}/{number}" if several else key
            yield RawRecord(own_key, segments, (example.image,), question.answers, metadata)
        return
    template = source.config.conversation_prompt
    turns: list[Segment] = [Segment.of_image(0, Role.HUMAN)]
    for question in example.questions:
        prompt = fill(template, question.text, question.choices)
        turns.append(Segment.of_text(prompt, Role.HUMAN))
        turns.append(Segment.of_text(_best_answer(question, template), Role.ASSISTANT))
    yield RawRecord(key, tuple(turns), (example.image,), metadata=example.metadata)


def _best_answer(question: _Question, template: str) -> str:
    """The right option's letter where the prompt lists options, else the commonest answer."""
    if CHOICES not in template:
        return Counter(question.answers).most_common(1)[0][0]
    if question.correct is None:
        raise Rejected(
            Reason.QUESTION_WITHOUT_ANNOTATION, "found no right option, which the prompt asks for"
        )
    return option_letter(question.correct)


def _gqa(images: _Images, name: str, entry: Entry) -> _Example:
    question = _Question(_text(entry, "question"), (_text(entry, "answer"),))
    return _Example(images.with_stem(entry.get("imageId")), (question,), {"question_id": name})


def _a_okvqa(images: _Images, name: str, entry: Entry) -> _Example:
    choices = _texts(entry, "choices")
    answers = _texts(entry, "direct_answers")
    correct = _index(entry.get("correct_choice_idx"), choices)
    answers = answers or ((choices[correct],) if correct is not None else ())
    question = _Question(_text(entry, "question"), _some(answers), choices, correct)
    return _Example(images.numbered(entry.get("image_id")), (question,), {"question_id": name})


def _ocr_vqa(images: _Images, name: str, entry: Entry) -> _Example:
    questions, answers = _texts(entry, "questions"), _texts(entry, "answers")
    if not questions or len(questions) != len(answers):
        found = f"found {len(questions)} questions and {len(answers)} answers"
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, found)
    asked = tuple(
        _Question(text, (answer,)) for text, answer in zip(questions, answers, strict=True)
    )
    metadata = {field: entry[field] for field in ("title", "genre") if field in entry}
    return _Example(images.with_stem(name), asked, metadata)


def _is_ocr_vqa_of(entry: Any, split: SourceSplit) -> bool:
    """OCR-VQA keeps all splits in one file: 1 is training, 2 validation, 3 test."""
    if not isinstance(entry, dict):
        return True
    wanted = (1,) if split == SourceSplit.TRAIN else (2, 3)
    return entry.get("split", wanted[0]) in wanted


def _dvqa(images: _Images, name: str, entry: Entry) -> _Example:
    question = _Question(_text(entry, "question"), (_text(entry, "answer"),))
    return _Example(images.named(entry.get("image")), (question,), {"question_id": name})


def _chart_qa(images: _Images, name: str, entry: Entry) -> _Example:
    question = _Question(_text(entry, "query"), (_text(entry, "label"),))
    return _Example(images.named(entry.get("imgname")), (question,), {"question_id": name})


def _ai2d(images: _Images, name: str, entry: Entry) -> _Example:
    found = entry.get("questions")
    if not isinstance(found, dict) or not found:
        raise Rejected(Reason.TEXT_MISSING, "found no question")
    questions = []
    for text, content in all_pairs(found):
        choices = _texts(content if isinstance(content, dict) else {}, "answerTexts")
        correct = _index(content.get("correctAnswer"), choices) if choices else None
        if correct is None:
            raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, f"found no right option of {text!r}")
        questions.append(_Question(text, (choices[correct],), choices, correct))
    image = images.named(entry.get("imageName"))
    return _Example(image, tuple(questions), {"image_name": name})


def _doc_vqa(images: _Images, name: str, entry: Entry) -> _Example:
    image = entry.get("image_local_name", entry.get("image"))
    resolved = images.named_below(image)  # DocVQA says documents/x.png
    question = _Question(_text(entry, "question"), _some(_texts(entry, "answers")))
    return _Example(resolved, (question,), {"question_id": name})


def _text_caps(images: _Images, source: Source, file: SourceFile, content: Any) -> Iterator[Item]:
    for number, entry in enumerate(entries(_object(content), "data")):
        fields = entry if isinstance(entry, dict) else {}
        key = f"{file.key}/{as_name(fields.get('caption_id')) or f'entry_{number}'}"
        image_id = fields.get("image_id")
        if image_id is None:
            yield RejectedRecord(key, Rejected(Reason.CAPTION_WITHOUT_IMAGE))
            continue
        image, metadata = images.with_stem(image_id), {"image_id": image_id}
        yield caption_record(source, key, image, fields.get("caption_str"), metadata)


def _objects_by_key(content: Any) -> Iterator[tuple[str, Any]]:
    for number, (name, entry) in enumerate(all_pairs(_object(content))):
        yield as_name(name) or f"entry_{number}", entry


def _listed(identifier: str, content: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, list):
        found = f"found {type(content).__name__}, expected a list"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    for number, entry in enumerate(content):
        name = as_name(entry.get(identifier)) if isinstance(entry, dict) else None
        yield name or f"entry_{number}", entry


def _data(identifier: str, content: Any) -> Iterator[tuple[str, Any]]:
    yield from _listed(identifier, entries(_object(content), "data"))


def _whole_file(content: Any) -> Iterator[tuple[str, Any]]:
    yield as_name(_object(content).get("imageName")) or "entry_0", content


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        found = f"found {type(content).__name__}, expected an object"
        raise Rejected(Reason.MALFORMED_RECORD, found)
    return content


def _text(entry: Entry, name: str) -> str:
    found = entry.get(name)
    if isinstance(found, int | float) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str) or not found.strip():
        raise Rejected(Reason.TEXT_MISSING, f"found no text in the field {name!r}")
    return found


def _texts(entry: Entry, name: str) -> tuple[str, ...]:
    found = entry.get(name)
    items = found if isinstance(found, list) else []
    return tuple(str(item) for item in items if isinstance(item, str | int | float))


def _some(answers: tuple[str, ...]) -> tuple[str, ...]:
    usable = tuple(answer for answer in answers if answer.strip())
    if not usable:
        raise Rejected(Reason.QUESTION_WITHOUT_ANNOTATION, "found no answer")
    return usable


def _index(value: Any, choices: tuple[str, ...]) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    return None


_LAYOUTS = {
    SourceFormat.GQA: _Layout(_objects_by_key, _gqa),
    SourceFormat.A_OKVQA: _Layout(partial(_listed, "question_id"), _a_okvqa),
    SourceFormat.OCR_VQA: _Layout(_objects_by_key, _ocr_vqa, _is_ocr_vqa_of),
    SourceFormat.DVQA: _Layout(partial(_listed, "question_id"), _dvqa),
    SourceFormat.CHART_QA: _Layout(partial(_listed, "none"), _chart_qa),
    SourceFormat.AI2D: _Layout(_whole_file, _ai2d),
    SourceFormat.DOC_VQA: _Layout(partial(_data, "questionId"), _doc_vqa),
}

READERS = {
    name: Reader(partial(_read_files, read_content), image_folder_problems)
    for name, read_content in {
        **{name: partial(_read_entries, layout) for name, layout in _LAYOUTS.items()},
        SourceFormat.TEXT_CAPS: _text_caps,
    }.items()
}
