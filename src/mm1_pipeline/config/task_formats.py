"""Official file formats of benchmarks, and the files that each consists of."""

from __future__ import annotations

from enum import StrEnum


class TaskFormat(StrEnum):
    """How the official files of a benchmark are written."""

    KARPATHY = "karpathy"
    """Captions of COCO in Karpathy's splits: dataset_coco.json. Subsets: its splits."""
    COCO_CAPTIONS = "coco_captions"
    """`images` and `annotations` of captions, as COCO and NoCaps have."""
    TEXTCAPS = "textcaps"
    """TextCaps_0.1_<split>.json."""
    VQA = "vqa"
    """Questions and annotations in two files: VQAv2, OK-VQA."""
    TEXTVQA = "textvqa"
    """TextVQA_0.5.1_<split>.json."""
    VIZWIZ = "vizwiz"
    """<split>.json of VizWiz-VQA."""
    GQA = "gqa"
    """<split>_balanced_questions.json."""
    DOCVQA = "docvqa"
    """<split>_v1.0.json of DocVQA, infographicsVQA_<split>_v1.0_withQT.json."""
    CHARTQA = "chartqa"
    """<split>_human.json or <split>_augmented.json."""
    SCIENCEQA = "scienceqa"
    """problems.json and pid_splits.json; questions without an image are left out."""
    MMMU = "mmmu"
    """Parquet files of all subjects in one folder. Subsets: `dev`, `validation`, `test`, where the
    names of the files begin with them, as published."""
    MATHVISTA = "mathvista"
    """testmini.json."""
    MME = "mme"
    """A folder a category, with images and tab-separated questions. Subsets: `perception`,
    `cognition`, or both when empty."""
    MMBENCH = "mmbench"
    """One tab-separated file that holds the images, with a row for each rotation of the options
    (index + k x 1,000,000), or without rotations, which are then made."""
    SEED = "seed"
    """SEED-Bench.json. Subsets: `image`, or also `video` when empty."""
    POPE = "pope"
    """A JSON-lines file for each of the three splits."""
    LLAVA_W = "llava_w"
    """Questions, image descriptions and reference answers as JSON lines."""
    MM_VET = "mm_vet"
    """mm-vet.json."""


FILES: dict[TaskFormat, frozenset[str]] = {
    TaskFormat.KARPATHY: frozenset({"annotations", "images"}),
    TaskFormat.COCO_CAPTIONS: frozenset({"annotations", "images"}),
    TaskFormat.TEXTCAPS: frozenset({"annotations", "images"}),
    TaskFormat.VQA: frozenset({"questions", "annotations", "images"}),
    TaskFormat.TEXTVQA: frozenset({"annotations", "images"}),
    TaskFormat.VIZWIZ: frozenset({"annotations", "images"}),
    TaskFormat.GQA: frozenset({"questions", "images"}),
    TaskFormat.DOCVQA: frozenset({"annotations", "images"}),
    TaskFormat.CHARTQA: frozenset({"annotations", "images"}),
    TaskFormat.SCIENCEQA: frozenset({"problems", "splits", "images"}),
    TaskFormat.MMMU: frozenset({"data"}),
    TaskFormat.MATHVISTA: frozenset({"annotations", "images"}),
    TaskFormat.MME: frozenset({"data"}),
    TaskFormat.MMBENCH: frozenset({"data"}),
    TaskFormat.SEED: frozenset({"questions", "images"}),
    TaskFormat.POPE: frozenset({"random", "popular", "adversarial", "images"}),
    TaskFormat.LLAVA_W: frozenset({"questions", "context", "references", "images"}),
    TaskFormat.MM_VET: frozenset({"annotations", "images"}),
}
"""Roles of the files and folders that a format consists of."""

ANSWER_FILES: dict[TaskFormat, frozenset[str]] = {TaskFormat.VQA: frozenset({"annotations"})}
"""Roles that hold nothing but answers; they are not there where answers are hidden."""


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
