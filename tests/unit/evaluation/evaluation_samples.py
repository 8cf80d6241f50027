"""Small records of captions and questions that the tests of this folder share."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.corpus.records import Record, RecordImage, RecordWriter, Role, Segment

COLOURS = ("red", "green", "blue", "yellow")
VQA_PROMPT = "{image} Question: {question} Short answer:"
CAPTION_PROMPT = "{image} A photo of"

TEXTS = [
    *(f" A photo of a {colour} square." for colour in COLOURS),
    *(f" Question: what is the {colour} shape? Short answer: {colour}\n" for colour in COLOURS),
]


def encoded_image(number: int) -> bytes:
    """A different small PNG for every number."""
    colour = (number * 37 % 256, number * 91 % 256, number * 151 % 256)
    buffer = io.BytesIO()
    Image.new("RGB", (24 + number % 7, 24), colour).save(buffer, "PNG")
    return buffer.getvalue()


def record_image(data: bytes) -> RecordImage:
    return RecordImage(data, None, hashlib.sha256(data).hexdigest(), 24, 24)


def caption_record(key: str, data: bytes, references: Sequence[str]) -> Record:
    return Record(
        source="captions",
        key=key,
        kind=RecordKind.CAPTION,
        segments=(Segment.of_image(0),),
        images=(record_image(data),),
        references=tuple(references),
    )


def question_record(key: str, data: bytes, question: str, answers: Sequence[str]) -> Record:
    return Record(
        source="questions",
        key=key,
        kind=RecordKind.CONVERSATION,
        segments=(Segment.of_image(0, Role.HUMAN), Segment.of_text(question, Role.HUMAN)),
        images=(record_image(data),),
        references=tuple(answers),
    )


def sample_captions() -> list[Record]:
    return [
        caption_record(
            f"caption {number}",
            encoded_image(number),
            [f"A {COLOURS[number % 4]} square.", f"Something {COLOURS[number % 4]}."],
        )
        for number in range(8)
    ]


def sample_questions() -> list[Record]:
    """Two questions on each of six images."""
    return [
        question_record(
            f"question {number}",
            encoded_image(number // 2),
            f"what is the {COLOURS[number % 4]} shape?",
            [COLOURS[number % 4]] * 7 + ["no"] * 3,
        )
        for number in range(12)
    ]


def write_source(records_dir: Path, source: str, records: Sequence[Record]) -> None:
    with RecordWriter(records_dir / "records" / source, 100) as writer:
        for record in records:
            writer.write(record)
