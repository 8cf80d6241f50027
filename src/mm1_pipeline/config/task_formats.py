"""Official file formats of benchmarks, and the files that each consists of.

A format is added by a member of `TaskFormat` here and an entry in `READERS` of the module of
`evaluation.formats` that the member names. What a member leaves out fails when this is imported;
the test `test_every_task_format_is_whole` finds what the reader's module leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_IMAGES = 7
"""Images a question of MMMU may have."""


@dataclass(frozen=True, slots=True)
class TaskLayout:
    """What is said of a task format."""

    reader: str
    """Module of `evaluation.formats` that reads it."""
    files: frozenset[str]
    """Roles of the files and folders that it consists of."""
    answers: frozenset[str]
    """Roles that hold nothing but answers; they are not there where answers are hidden."""


def _layout(reader: str, *files: str, answers: tuple[str, ...] = ()) -> TaskLayout:
    return TaskLayout(reader, frozenset((*files, *answers)), frozenset(answers))


class TaskFormat(StrEnum):
    """How the official files of a benchmark are written."""

    layout: TaskLayout

    def __new__(cls, value: str, layout: TaskLayout) -> TaskFormat:
        member = str.__new__(cls, value)
        member._value_ = value
        member.layout = layout
        return member

    KARPATHY = "karpathy", _layout("annotated", "annotations", "images")
    """Captions of COCO in Karpathy's splits: dataset_coco.json. Subsets: its splits."""
    COCO_CAPTIONS = "coco_captions", _layout("annotated", "annotations", "images")
    """`images` and `annotations` of captions, as COCO and NoCaps have."""
    TEXTCAPS = "textcaps", _layout("annotated", "annotations", "images")
    """TextCaps_0.1_<split>.json."""
    VQA = "vqa", _layout("annotated", "questions", "images", answers=("annotations",))
    """Questions and annotations in two files: VQAv2, OK-VQA."""
    TEXTVQA = "textvqa", _layout("annotated", "annotations", "images")
    """TextVQA_0.5.1_<split>.json."""
    VIZWIZ = "vizwiz", _layout("annotated", "annotations", "images")
    """<split>.json of VizWiz-VQA."""
    GQA = "gqa", _layout("annotated", "questions", "images")
    """<split>_balanced_questions.json."""
    DOCVQA = "docvqa", _layout("annotated", "annotations", "images")
    """<split>_v1.0.json of DocVQA, infographicsVQA_<split>_v1.0_withQT.json."""
    CHARTQA = "chartqa", _layout("annotated", "annotations", "images")
    """<split>_human.json or <split>_augmented.json."""
    SCIENCEQA = "scienceqa", _layout("choices", "problems", "splits", "images")
    """problems.json and pid_splits.json; questions without an image are left out."""
    MMMU = "mmmu", _layout("choices", "data")
    """Parquet files of all subjects in one folder. Subsets: `dev`, `validation`, `test`, where the
    names of the files begin with them, as published."""
    MATHVISTA = "mathvista", _layout("open_ended", "annotations", "images")
    """testmini.json."""
    MME = "mme", _layout("yes_no", "data")
    """A folder a category, with images and tab-separated questions. Subsets: `perception`,
    `cognition`, or both when empty."""
    MMBENCH = "mmbench", _layout("choices", "data")
    """One tab-separated file that holds the images, with a row for each rotation of the options
    (index + k x 1,000,000), or without rotations, which are then made."""
    SEED = "seed", _layout("choices", "questions", "images")
    """SEED-Bench.json. Subsets: `image`, or also `video` when empty."""
    POPE = "pope", _layout("yes_no", "random", "popular", "adversarial", "images")
    """A JSON-lines file for each of the three splits."""
    LLAVA_W = "llava_w", _layout("open_ended", "questions", "context", "references", "images")
    """Questions, image descriptions and reference answers as JSON lines."""
    MM_VET = "mm_vet", _layout("open_ended", "annotations", "images")
    """mm-vet.json."""


class SubmissionFormat(StrEnum):
    """How answers are handed in to a benchmark's server."""

    ANSWERS = "answers"
    """A JSON object from the item's key to its answer: MMMU, MM-Vet."""
    VQA = "vqa"
    """A JSON list of `question_id` and `answer`: VQAv2, OK-VQA, TextVQA."""
    VIZWIZ = "vizwiz"
    """A JSON list of `image` and `answer`."""
    GQA = "gqa"
    """A JSON list of `questionId` and `prediction`."""
    DOCVQA = "docvqa"
    """A JSON list of `questionId` and `answer`."""
    CAPTIONS = "captions"
    """A JSON list of `image_id`, a number, and `caption`: COCO, NoCaps."""
    TEXTCAPS = "textcaps"
    """A JSON list of `image_id`, a text, and `caption`."""
    MMBENCH = "mmbench"
    """A tab-separated table of `index`, question, options and `prediction`."""
