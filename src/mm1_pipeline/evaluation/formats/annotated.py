"""Questions and captions in annotation files; `annotations` reads them, for corpus as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mm1_pipeline.annotations import captions, questions
from mm1_pipeline.annotations.json_files import parse_file, parse_list
from mm1_pipeline.annotations.questions import VqaAnnotations, Wanted
from mm1_pipeline.annotations.records import (
    Asked,
    Captioned,
    Found,
    ImageCall,
    ImageName,
    RejectedEntry,
    as_name,
)
from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.corpus.annotated_images import AnnotatedImages
from mm1_pipeline.corpus.files import ImageFolder
from mm1_pipeline.corpus.images import SAFE
from mm1_pipeline.evaluation.formats.base import FormatFiles, RawItem, read_content
from mm1_pipeline.ground.rejects import Rejected

_ROWS = (TaskFormat.VIZWIZ, TaskFormat.CHARTQA)
"""Formats whose files are lists of entries; JSON lines are one as well, if only of one line."""


def _read(task_format: TaskFormat, read: questions.Read, files: FormatFiles) -> Iterator[RawItem]:
    """Items of the one file that is not the images."""
    (role,) = task_format.layout.files - {"images"}
    path = files.paths[role]
    with _naming(path):
        parse = parse_list if task_format in _ROWS else parse_file
        content = parse(read_content(path))
        yield from _to_items(files, read(content, _wanted(files)))


def _read_vqa(files: FormatFiles) -> Iterator[RawItem]:
    """Questions and the answers of ten people, in two files joined by question."""
    annotations = VqaAnnotations()
    strays: list[Found] = []
    if "annotations" in files.paths:
        path = files.paths["annotations"]
        with _naming(path):
            strays += annotations.add(parse_file(read_content(path)))
    path = files.paths["questions"]
    with _naming(path):
        found = annotations.ask(parse_file(read_content(path)), _wanted(files))
        yield from _to_items(files, found)
    yield from _to_items(files, [*strays, *annotations.unasked()])


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says of which file it is where a file is none of the format's."""
    try:
        yield
    except Rejected as why:
        found = why.detail[:1].upper() + why.detail[1:]
        raise ValueError(
            f"{found} in {path} ({why.reason.value}); expected the official format."
        ) from why


def _wanted(files: FormatFiles) -> Wanted:
    return Wanted(hides_answers=files.hides_answers, subset=files.subset)


def _to_items(files: FormatFiles, found: Iterable[Found]) -> Iterator[RawItem]:
    folder = files.paths["images"]
    images = AnnotatedImages(ImageFolder(str(folder), SAFE.max_bytes))
    for entry in found:
        if isinstance(entry, RejectedEntry):
            yield RawItem(entry.key, failure=str(entry.why), is_asked=entry.is_asked)
        elif isinstance(entry, Asked | Captioned):
            try:
                image = folder / images.resolve(_named(files, entry.image))
            except Rejected as why:
                yield RawItem(entry.key, failure=str(why), category=entry.category)
                continue
            if isinstance(entry, Captioned):
                yield RawItem(
                    entry.key, (image,), references=entry.references, category=entry.category
                )
                continue
            for number, question in enumerate(entry.questions):
                several = len(entry.questions) > 1
                yield RawItem(
                    f"{entry.key}/{number}" if several else entry.key,
                    (image,),
                    question.text,
                    question.answers,
                    category=entry.category,
                )


def _named(files: FormatFiles, image: ImageName) -> ImageName:
    """The file name that the task gives an image whose number is known."""
    number = as_name(image.value)
    if image.call != ImageCall.NUMBER or not files.image_name or number is None:
        return image
    return ImageName(files.image_name.format(id=int(number)))


READERS = {
    TaskFormat.VQA: _read_vqa,
    **{
        task_format: partial(_read, task_format, read)
        for task_format, read in {
            TaskFormat.TEXTVQA: questions.read_text_vqa,
            TaskFormat.VIZWIZ: questions.read_viz_wiz,
            TaskFormat.GQA: questions.read_gqa,
            TaskFormat.DOCVQA: questions.read_doc_vqa,
            TaskFormat.CHARTQA: questions.read_chart_qa,
            TaskFormat.KARPATHY: captions.read_karpathy,
            TaskFormat.COCO_CAPTIONS: captions.read_coco,
            TaskFormat.TEXTCAPS: captions.read_text_caps,
        }.items()
    },
}
