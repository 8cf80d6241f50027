"""Scores of captions: nothing is lost, reordered or scored twice, and staleness sees the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_builders import NAME, PLAIN, make_config, picture, sample, write_tar
from hypothesis import given
from hypothesis import strategies as st
from kedro_rerun.code import CodeIndex
from kedro_rerun.parameters import flatten_parameters
from pydantic import ValidationError

from mm1_pipeline.config.corpus_rules import ClipScoreConfig
from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.corpus import caption_scores
from mm1_pipeline.corpus.caption_scores import Checked, reject_low_scores
from mm1_pipeline.corpus.filters import FilterResult
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.readers.base import RejectedRecord
from mm1_pipeline.corpus.records import Record, RecordImage, Segment, read_records
from mm1_pipeline.ground.rejects import Reason, Rejected
from mm1_pipeline.pipelines.ingest.nodes import ingest_pretraining
from mm1_pipeline.settings import SESSION_CLASS

MODEL = {"checkpoint": "model", "tokenizer": "tokenizer", "threshold": 0.5}


class NumberScorer:
    """The score is the number at the end of the caption, out of 100; 13 cannot be scored."""

    identity = "numbers"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, records: Sequence[Record]) -> list[float | Rejected]:
        self.calls.append(len(records))
        numbers = [int((record.segments[-1].text or "").split()[-1]) for record in records]
        return [Rejected(Reason.IMAGE_TRUNCATED) if n == 13 else n / 100 for n in numbers]


def load_numbers(config: ClipScoreConfig) -> NumberScorer:
    return NumberScorer()


def checked(number: int | None, size: int) -> Checked:
    """A record with a caption of this number; one that was rejected before for None."""
    item = RejectedRecord("k", Rejected(Reason.EMPTY_FILE))
    if number is None:
        why = Rejected(Reason.TOO_FEW_WORDS)
        return Checked(item, FilterResult(None, why, (), 1) if size % 2 else None, None)
    image = RecordImage(bytes(size), None, "0" * 64, 1, 1)
    segments = (Segment.of_image(0), Segment.of_text(f"caption {number}"))
    record = Record(NAME, str(number), RecordKind.CAPTION, segments, (image,))
    return Checked(item, FilterResult(record, None, (), 1), str(number).encode())


@given(st.lists(st.tuples(st.none() | st.integers(0, 99), st.integers(0, 9)), max_size=120))
def test_every_record_comes_out_once_in_its_order(numbers: list[tuple[int | None, int]]) -> None:
    scorer = NumberScorer()
    before = [checked(number, size) for number, size in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_scores, "_TOGETHER_BYTES", 60)
        after = list(reject_low_scores(iter(before), scorer, 0.5))
    assert len(after) == len(before)
    assert sum(scorer.calls) == sum(number is not None for number, _ in numbers)
    assert max(scorer.calls, default=0) <= 32
    for (number, _), old, new in zip(numbers, before, after, strict=True):
        if number is None or (number >= 50 and number != 13):
            assert new is old
            continue
        assert (new.item, new.perceptual_hash) == (old.item, old.perceptual_hash)
        assert new.verdict is not None
        assert new.verdict.why is not None
        assert (new.verdict.record, new.verdict.num_images) == (None, 1)
        expected = Reason.IMAGE_TRUNCATED if number == 13 else Reason.CLIP_SCORE_TOO_LOW
        assert new.verdict.why.reason == expected


def source_of(folder: Path, **changes: Any) -> dict[str, Any]:
    source = {"kind": "caption", "format": "img2dataset", "path": str(folder), **PLAIN}
    return {**source, "clip_score": MODEL, **changes}


@pytest.mark.parametrize("perceptual", [False, True])
def test_counts_hold_among_other_reasons(tmp_path: Path, perceptual: bool) -> None:
    for file in range(3):
        members = []
        for n in range(40):
            number = (n * 7 + file * 31) % 100
            data = picture(100 * file + n) if n % 9 else b"no image"
            members += sample(f"{n:02d}", data, f"caption {number}" if n % 8 else None)
        write_tar(tmp_path / "raw" / f"{file}.tar", members)
    source = source_of(tmp_path / "raw")
    source["deduplication"] = {**PLAIN["deduplication"], "perceptual": perceptual}
    config = make_config({NAME: source}, partition_bytes=1)
    report = ingest(config, tmp_path / "out", load_scorer=load_numbers)["sources"][NAME]
    kept = [int(r.segments[-1].text.split()[-1]) for r in read_records(tmp_path / "out", NAME)]
    fits = [
        (n * 7 + file * 31) % 100
        for file in range(3)
        for n in range(40)
        if n % 9 and n % 8 and (n * 7 + file * 31) % 100 >= 50
    ]
    assert report["read"] == 120
    assert report["kept"] + sum(report["rejected"].values()) == report["read"]
    assert report["rejected"]["clip_score_too_low"] > 0
    if not perceptual:  # these pictures are of one colour each, which look alike
        assert kept == fits
    assert set(kept) <= set(fits)


def test_only_captions_to_learn_from_are_scored() -> None:
    text = {"kind": "text", "format": "jsonl", "path": "x", "clip_score": MODEL}
    evaluation = source_of(Path("x"), split="evaluation")
    for source in (text, evaluation):
        with pytest.raises(ValidationError, match="only captions to learn from"):
            make_config({NAME: source})
    with pytest.raises(ValidationError, match="found 20, expected at least -1 and at most 1"):
        make_config({NAME: source_of(Path("x"), clip_score={**MODEL, "threshold": 20})})


def test_the_model_counts_by_its_content() -> None:
    flat = flatten_parameters(make_config({NAME: source_of(Path("raw"))}), "ingest")
    paths = {f"ingest.sources.{NAME}.clip_score.{name}" for name in ("checkpoint", "tokenizer")}
    assert paths <= flat.input_paths.keys()


def test_edits_of_the_models_do_not_rerun_ingest() -> None:
    settings = SESSION_CLASS.staleness_settings
    entry = (ingest_pretraining.__module__, ingest_pretraining.__name__)

    def reached(excluded: tuple[str, ...]) -> set[str]:
        return set(CodeIndex(settings.packages, excluded).closure([entry]).parts)

    def of_models(parts: set[str]) -> list[str]:
        return [part for part in parts if part.startswith("mm1_pipeline.models")]

    parts = reached(settings.excluded)
    assert "mm1_pipeline.corpus.caption_scores:SCORES_VERSION" in parts
    assert not of_models(parts)
    assert of_models(reached(())), "what settings.py is there for"
