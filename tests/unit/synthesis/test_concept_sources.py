"""Concepts from the text in images and from models: recorded, kept, and each failure counted."""

from __future__ import annotations

import builtins
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from mm1_pipeline.config.ingest import RecordKind, SourceConfig, SourceFormat
from mm1_pipeline.config.synthesis import SynthesisConfig, TextReaderConfig
from mm1_pipeline.corpus.records import (
    Record,
    RecordImage,
    RecordWriter,
    Segment,
    read_records,
    write_sources,
)
from mm1_pipeline.corpus.synthesis.concepts import MeasuredConcepts, one_line
from mm1_pipeline.corpus.synthesis.synthesize import synthesize
from mm1_pipeline.corpus.synthesis.text_reader import TextReader
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, TemplateWriter
from mm1_pipeline.evaluation.captioning.caption_writer import make_concept_sources
from mm1_pipeline.ground.rejects import Reason, Rejected
from typed_values import pixel

SOURCE = SourceConfig(kind=RecordKind.CAPTION, format=SourceFormat.IMAGE_PARQUET, path="-")


def encode(image: Image.Image) -> RecordImage:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    return RecordImage(data, None, hashlib.sha256(data).hexdigest(), *image.size)


def sign(*lines: str, size: tuple[int, int] = (320, 120)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    for number, line in enumerate(lines):
        font = ImageFont.load_default(32)
        ImageDraw.Draw(image).text((10, 10 + 50 * number), line, fill="black", font=font)
    return image


class FakeCaptioner:
    """Says the colour of the first pixel."""

    names = ("caption",)

    def __init__(self, model: str = "one", failing: int = -1) -> None:
        self.provenance = {"captioner": "fake", "model": model}
        self.asked: list[int] = []
        self._failing = failing

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        found: list[dict[str, str] | Rejected] = []
        for image in images:
            number = pixel(Image.open(io.BytesIO(image.bytes)), 0, 0)[0]
            self.asked.append(number)
            if number == self._failing:
                found.append(Rejected(Reason.CONCEPTS_FAILED, "caption: out of memory"))
            else:
                found.append({"caption": f"picture {number}"} if number else {})
        return found


@pytest.fixture
def records_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    with RecordWriter(folder / "records" / "pairs", records_per_file=50) as writer:
        for number in range(6):
            image = encode(Image.new("RGB", (20, 20), (number, 0, 0)))
            segments = (Segment.of_image(0), Segment.of_text(f"alt {number}"))
            writer.write(
                Record("pairs", str(number), RecordKind.CAPTION, segments, (image,), (), {})
            )
    write_sources(folder, {"pairs": SOURCE})
    return folder


CONFIG = SynthesisConfig(sources=("pairs",), name="second", concepts=("shape",))
WITH_CAPTION = replace(
    CONFIG,
    concepts=("caption", "shape"),
    captioner={"checkpoint": "-", "tokenizer": "-"},  # pyright: ignore[reportArgumentType]
)


def test_a_models_caption_reaches_the_writer_and_the_record(
    records_dir: Path, tmp_path: Path
) -> None:
    captioner = FakeCaptioner(failing=3)
    concepts = (MeasuredConcepts(("shape",)), captioner)
    report = synthesize(WITH_CAPTION, TemplateWriter(), records_dir, tmp_path / "out", concepts)
    assert (report["read"], report["kept"]) == (6, 5)
    assert report["rejected"] == {"concepts_failed": 1}
    assert report["concepts"] == {"caption": captioner.provenance}
    found = {r.key: r for r in read_records(tmp_path / "out", "second")}
    about = found["pairs/4"].metadata["synthetic"]
    assert list(about["concepts"].items()) == [("caption", "picture 4"), ("shape", "square")]
    assert about["concept_sources"] == {"caption": captioner.provenance}
    assert found["pairs/0"].metadata["synthetic"]["concepts"] == {"shape": "square"}
    texts = " ".join(record.segments[1].text or "" for record in found.values())
    assert re.search(r"alt \d: picture \d\.", texts)


def test_what_a_model_said_is_kept_and_asked_for_only_by_another_model(
    records_dir: Path, tmp_path: Path
) -> None:
    config = replace(WITH_CAPTION, cache=str(tmp_path / "answers.sqlite"))

    def run(captioner: FakeCaptioner, name: str) -> list[Any]:
        concepts = (MeasuredConcepts(("shape",)), captioner)
        synthesize(config, TemplateWriter(), records_dir, tmp_path / name, concepts)
        return [record.segments for record in read_records(tmp_path / name, "second")]

    first = FakeCaptioner(failing=3)
    run(first, "first")
    assert first.asked == [0, 1, 2, 3, 4, 5]
    second = FakeCaptioner()
    whole = run(second, "second")
    assert second.asked == [3], "failures are asked for again, and what has no words is not"
    assert len(whole) == 6
    other = FakeCaptioner(model="two")
    assert run(other, "third") == whole
    assert other.asked == [0, 1, 2, 3, 4, 5]


def test_a_concept_that_nobody_tells_is_named(records_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found \['caption'\], which no source of concepts tells"):
        synthesize(WITH_CAPTION, TemplateWriter(), records_dir, tmp_path / "out")
    with pytest.raises(ValueError, match="expected each name once"):
        replace(CONFIG, concepts=("shape", "shape"))


def test_records_need_no_concepts(records_dir: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, concepts=())
    concepts = make_concept_sources(config)
    report = synthesize(config, TemplateWriter(), records_dir, tmp_path / "out", concepts)
    assert (concepts, report["kept"]) == ([], 6)


def test_an_image_that_cannot_be_opened_is_a_rejection() -> None:
    image = replace(encode(sign()), bytes=b"no image")
    for source in (MeasuredConcepts(), TextReader(TextReaderConfig(), lambda _: [], {})):
        (found,) = source.detect([image])
        assert isinstance(found, Rejected)
        assert found.reason == Reason.IMAGE_UNDECODABLE


# --- text in images ------------------------------------------------------------------------------


def test_what_is_read_is_kept_where_it_is_sure_and_cut_where_it_is_long() -> None:
    answers = iter(
        [
            [("OPEN\n DAILY", 0.9), ("glare", 0.5), ("O", 0.9), ("■■", 1.0), ("9 to 5", 0.8)],
            [],
            None,
        ]
    )
    config = TextReaderConfig(min_confidence=0.8, max_characters=12)

    def read(image: Image.Image) -> Any:
        assert image.mode == "RGB"
        return next(answers)

    reader = TextReader(config, read, {"reader": "fake"})
    image = encode(sign("x"))
    sure, nothing, broken = reader.detect([image] * 3)
    assert (sure, nothing) == ({"text": "OPEN DAILY 9"}, {})
    assert isinstance(broken, Rejected)
    assert broken.reason == Reason.CONCEPTS_FAILED
    limits = {"min_confidence": 0.8, "min_characters": 2, "max_characters": 12}
    assert reader.provenance == {"reader": "fake", **limits}
    assert one_line("abcdefgh", 3) == "abc"
    assert one_line("ab cd", 5) == "ab cd"
    with pytest.raises(ValueError, match="min_confidence: found 2"):
        TextReaderConfig(min_confidence=2)


def test_templates_may_quote_the_text_and_the_caption() -> None:
    concepts = {"text": "OPEN DAILY", "caption": "a shop."}
    requests = [CaptionRequest(f"k{n}", "the door", concepts) for n in range(40)]
    assert set(TemplateWriter().write(requests)) == {
        "A picture: the door.",
        "the door: a shop.",
        'the door, with the words "OPEN DAILY".',
    }


def test_a_reader_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in ("rapidocr", "onnxruntime"):
            raise ImportError(name, name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    config = SynthesisConfig(concepts=("text",))
    with pytest.raises(ValueError, match=r"synthesis\.concepts: .*install mm1-pipeline\[ocr\]"):
        make_concept_sources(config)


def test_the_real_reader_reads_signs() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("rapidocr")
    (reader,) = make_concept_sources(SynthesisConfig(concepts=("text",)))
    images = [encode(sign("OPEN DAILY", "9 to 5")), encode(Image.new("RGB", (90, 90), "white"))]
    found = reader.detect(images)
    assert found == [{"text": "OPEN DAILY 9 to 5"}, {}]
    assert found == reader.detect(images)
    assert reader.provenance is not None
    assert {"rapidocr", "onnxruntime"} <= reader.provenance.keys()
