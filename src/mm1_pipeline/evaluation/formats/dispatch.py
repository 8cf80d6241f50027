"""From a format to its reader."""

from __future__ import annotations

from collections.abc import Iterator

from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.evaluation.formats import captions, choices, open_ended, questions, yes_no
from mm1_pipeline.evaluation.formats.base import FormatFiles, RawItem

_MAX_FOUND = 300
"""Characters of a library's error that are passed on."""


def read_items(kind: TaskFormat, files: FormatFiles) -> Iterator[RawItem]:
    """Items of a benchmark, in the order of its files.

    Args:
        kind: How the files are written.
        files: Where they lie.

    Raises:
        ValueError: If a file is missing, damaged, or not in the format at all; a benchmark is
            asked whole or not at all.
    """
    try:
        yield from _reader(kind, files)
    except MemoryError:
        raise
    except Exception as error:
        places = [str(path) for path in files.paths.values()]
        if isinstance(error, ValueError) and any(place in str(error) for place in places):
            raise
        # Of damaged files libraries raise nearly everything: OSError, TypeError, RecursionError.
        found = " ".join(str(error).split())[:_MAX_FOUND]
        raise ValueError(
            f"Found no readable files of {kind.value} in {', '.join(places)} "
            f"({type(error).__name__}: {found}); expected the official format. Fetch them anew."
        ) from error


def _reader(kind: TaskFormat, files: FormatFiles) -> Iterator[RawItem]:
    match kind:
        case TaskFormat.KARPATHY:
            return captions.read_karpathy(files)
        case TaskFormat.COCO_CAPTIONS:
            return captions.read_coco_captions(files)
        case TaskFormat.TEXTCAPS:
            return captions.read_textcaps(files)
        case TaskFormat.VQA:
            return questions.read_vqa(files)
        case TaskFormat.TEXTVQA:
            return questions.read_textvqa(files)
        case TaskFormat.VIZWIZ:
            return questions.read_vizwiz(files)
        case TaskFormat.GQA:
            return questions.read_gqa(files)
        case TaskFormat.DOCVQA:
            return questions.read_docvqa(files)
        case TaskFormat.CHARTQA:
            return questions.read_chartqa(files)
        case TaskFormat.SCIENCEQA:
            return choices.read_scienceqa(files)
        case TaskFormat.MMMU:
            return choices.read_mmmu(files)
        case TaskFormat.MATHVISTA:
            return open_ended.read_mathvista(files)
        case TaskFormat.MME:
            return yes_no.read_mme(files)
        case TaskFormat.MMBENCH:
            return choices.read_mmbench(files)
        case TaskFormat.SEED:
            return choices.read_seed(files)
        case TaskFormat.POPE:
            return yes_no.read_pope(files)
        case TaskFormat.LLAVA_W:
            return open_ended.read_llava_w(files)
        case TaskFormat.MM_VET:
            return open_ended.read_mm_vet(files)
