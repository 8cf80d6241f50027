"""Structure-aware mutants of every JSON format: one entry changed, its neighbours are kept."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from corpus_builders import PLAIN, make_config, picture, run, write_bytes, write_json

from mm1_pipeline.config.ingest import SourceFormat
from mm1_pipeline.config.source_formats import ImagePlace
from mm1_pipeline.corpus.columns import to_table
from mm1_pipeline.corpus.filters import ImageChecker, check_record
from mm1_pipeline.corpus.readers.base import RawRecord, RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.records import RECORD_SCHEMA
from source_samples import FORMATS as SAMPLES
from source_samples import Writer

NUM_ENTRIES = 4
MUTANTS = 40
"""Of every format, by each split."""


def content_of(source_format: str) -> dict[str, tuple[Any, Any]]:
    """Files of a good source, each with its whole content and the entries in it."""
    numbers = range(NUM_ENTRIES)
    match source_format:
        case "gqa":
            entries = {
                f"{n}": {"imageId": f"{n}", "question": f"is it {n}?", "answer": "yes", "t": {}}
                for n in numbers
            }
            return {"train_questions.json": (entries, entries)}
        case "a_okvqa":
            entries = [
                {
                    "image_id": n,
                    "question_id": f"{n}",
                    "question": f"who is {n}?",
                    "choices": ["a", "b"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["b", "b"],
                }
                for n in numbers
            ]
            return {"aokvqa_train.json": (entries, entries)}
        case "ocr_vqa":
            entries = {
                f"{n}": {"questions": [f"q {n}"], "answers": ["a"], "title": "t"} for n in numbers
            }
            return {"dataset.json": (entries, entries)}
        case "text_caps":
            entries = [
                {"image_id": f"{n}", "caption_str": f"c {n}", "caption_id": n} for n in numbers
            ]
            return {"TextCaps_train.json": ({"data": entries}, entries)}
        case "dvqa":
            entries = [
                {"question": f"q {n}", "answer": n, "question_id": n, "image": f"{n}.jpg"}
                for n in numbers
            ]
            return {"train_qa.json": (entries, entries)}
        case "chart_qa":
            entries = [{"imgname": f"{n}.jpg", "query": f"q {n}", "label": "1"} for n in numbers]
            return {"train.json": (entries, entries)}
        case "ai2d":
            files = {}
            for n in numbers:
                asked = {f"what {n}?": {"answerTexts": ["a", "b"], "correctAnswer": 1}}
                entry = {"imageName": f"{n}.jpg", "questions": asked}
                files[f"{n}.json"] = (entry, [entry])
            return files
        case "doc_vqa":
            entries = [
                {"questionId": n, "question": f"q {n}", "image": f"d/{n}.jpg", "answers": ["a"]}
                for n in numbers
            ]
            return {"train.json": ({"data": entries}, entries)}
        case "vqa_v2":
            questions = [{"question_id": n, "image_id": n, "question": f"q {n}"} for n in numbers]
            annotations = [
                {"question_id": n, "image_id": n, "answers": [{"answer": "a"}]} for n in numbers
            ]
            return {
                "questions.json": ({"questions": questions}, questions),
                "annotations.json": ({"annotations": annotations}, annotations),
            }
        case "coco_captions":
            images = [{"id": n, "file_name": f"{n}.jpg"} for n in numbers]
            captions = [{"id": n, "image_id": n, "caption": f"a {n}"} for n in numbers]
            content = {"images": images, "annotations": captions}
            return {"captions.json": (content, images)}
        case "llava":
            entries = [
                {
                    "id": n,
                    "image": f"{n}.jpg",
                    "conversations": [
                        {"from": "human", "value": f"<image>q {n}"},
                        {"from": "gpt", "value": "a"},
                    ],
                }
                for n in numbers
            ]
            return {"chat.json": (entries, entries)}
        case _:
            with tempfile.TemporaryDirectory() as folder:
                writer, name = Numbered(Path(folder)), f"x{SAMPLES[source_format][1][0]}"
                getattr(writer, source_format)(name, [f"{n}" for n in numbers])
                content = json.loads((Path(folder) / name).read_bytes())
                return {name: (content, largest(content))}


class Numbered(Writer):
    """Calls the image of entry 3 `3.jpg`."""

    def images(self, entries: list[str]) -> list[str]:
        return [f"{entry}.jpg" for entry in entries]


def largest(content: Any) -> Any:
    """The list or object of entries somewhere in a file's content."""
    inner = [content, *(content.values() if isinstance(content, dict) else ())]
    return max((part for part in inner if isinstance(part, list | dict)), key=len)


FORMATS = [
    item.value
    for item in SourceFormat
    if item.layout.images == ImagePlace.BESIDE
    and any(pattern.endswith(".json") for pattern in item.layout.files)
]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    None, True, 1.5, -1, 10**30, float("nan"), "", " ", "x" * 5_000, "\ud800", "caf\udce9", "\0",
    "../../etc/passwd", "/etc/passwd", [], {}, [[]], ["a", None], {"a": {"b": 1}}, nested(500),
)  # fmt: skip


def change(node: Any, rng: random.Random) -> None:
    """Changes one place somewhere below a list or object."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    if not keys:
        return
    key = rng.choice(keys)
    below = node[key]
    if isinstance(below, list | dict) and below and rng.random() < 0.6:
        change(below, rng)
    elif rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)


def read(folder: Path, source_format: str, split: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Keys of the records that can be stored, and keys and reasons of all others."""
    kind = SourceFormat(source_format).layout.kind.value
    options = {**PLAIN, "kind": kind, "format": source_format, "path": str(folder), "split": split}
    config = make_config({"s": options})
    settings = config.sources["s"]
    checker = ImageChecker(settings.image_rules)
    kept, rejected = [], []
    for item in read_source(Source("s", settings, open_files(settings), config.limits)):
        if isinstance(item, RejectedRecord):
            rejected.append((item.key, item.why.reason.value))
        elif isinstance(item, RawRecord):
            verdict = check_record(item, "s", settings, checker, 10**9)
            if verdict.record is None:
                rejected.append((item.key, verdict.why.reason.value))
            else:
                to_table([verdict.record.to_row()], RECORD_SCHEMA)
                kept.append(verdict.record.key)
    return kept, rejected


def write(folder: Path, files: dict[str, tuple[Any, Any]]) -> None:
    for name, (content, _) in files.items():
        write_json(folder / name, content)


@pytest.mark.parametrize("source_format", FORMATS)
@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_a_changed_entry_costs_itself_alone(tmp_path, source_format, split):
    for n in range(NUM_ENTRIES):
        write_bytes(tmp_path / "images" / f"{n}.jpg", picture(n))
    good = content_of(source_format)
    write(tmp_path, good)
    whole, rejected = read(tmp_path, source_format, split)
    assert (len(whole), rejected) == (NUM_ENTRIES, [])
    rng = random.Random(f"{source_format} {split}")
    num_rejected = 0
    for number in range(MUTANTS):
        files = content_of(source_format)
        name = rng.choice(sorted(files))
        entries = files[name][1]
        keys = list(entries) if isinstance(entries, dict) else list(range(len(entries)))
        place = rng.randrange(len(keys))
        change(entries[keys[place]], rng)
        write(tmp_path, files)
        kept, rejected = read(tmp_path, source_format, split)
        if source_format == "ai2d":
            place = int(name[0])
        intact = [key for n, key in enumerate(whole) if n != place]
        assert set(intact) <= set(kept), (number, rejected)
        assert len(set(kept)) == len(kept)
        assert len(kept) + len(rejected) >= NUM_ENTRIES or source_format == "ocr_vqa"
        num_rejected += len(rejected)
    assert num_rejected > MUTANTS // 4  # else nothing was changed


@pytest.mark.parametrize("source_format", FORMATS)
def test_a_changed_file_never_ends_a_run(tmp_path, source_format):
    rng = random.Random(source_format)
    for _ in range(MUTANTS):
        files = content_of(source_format)
        name = rng.choice(sorted(files))
        content = [files[name][0]]
        change(content, rng)
        write(tmp_path, files | {name: (content[0] if content else None, None)})
        kept, _ = read(tmp_path, source_format, "train")
        assert not kept  # there is no image


GQA = {"imageId": "1", "answer": "a"}
DVQA = {"question_id": 1, "image": "1.jpg", "answer": "a"}
A_OKVQA = {"question_id": "1", "image_id": 1, "direct_answers": ["a"], "choices": ["a"]}
DOC_VQA = {"questionId": 1, "image": "1.jpg", "answers": ["a"]}
TEXT_CAPS = {"caption_id": 1, "image_id": "1"}
DOUBLES = {
    "gqa": ("questions.json", '{{"1": {0}, "1": {1}}}', GQA, "question"),
    "dvqa": ("qa.json", "[{0}, {1}]", DVQA, "question"),
    "a_okvqa": ("aokvqa.json", "[{0}, {1}]", A_OKVQA, "question"),
    "doc_vqa": ("train.json", '{{"data": [{0}, {1}]}}', DOC_VQA, "question"),
    "text_caps": ("textcaps.json", '{{"data": [{0}, {1}]}}', TEXT_CAPS, "caption_str"),
}


@pytest.mark.parametrize("source_format", DOUBLES)
def test_two_entries_of_one_name_are_not_two_records(tmp_path, source_format):
    file, template, entry, field = DOUBLES[source_format]
    both = [json.dumps({**entry, field: text}) for text in ("one", "two")]
    write_bytes(tmp_path / "raw" / file, template.format(*both).encode())
    write_bytes(tmp_path / "raw" / "images" / "1.jpg", picture())
    path = tmp_path / "raw"
    result = run(tmp_path / "out", "conversation", source_format, path, split="evaluation")
    assert result.rejected == {"duplicate_key": 1}
    assert len(result.records) == 1
    assert "two" not in result.texts[0]


def test_entries_of_other_files_share_no_key(tmp_path):
    entry = {"imageId": "1", "question": "q", "answer": "a"}
    write_json(tmp_path / "raw" / "x_questions.json", {"b/1": entry, "1": entry})
    write_json(tmp_path / "raw" / "x_questions" / "b_questions.json", {"1": entry})
    write_json(tmp_path / "raw" / "x_questions" / "b" / "questions.json", {"1": entry})
    write_json(tmp_path / "raw" / "x_questions.v1.json", {"1": entry})
    write_bytes(tmp_path / "raw" / "images" / "1.jpg", picture())
    path = tmp_path / "raw"
    result = run(tmp_path / "out", "conversation", "gqa", path, split="evaluation")
    keys = [record.key for record in result.records]
    assert len(set(keys)) == len(keys) == 5


def test_questions_that_two_files_answer_differently_are_not_asked(tmp_path):
    def annotations(answer):
        entries = [{"question_id": 1, "answers": [{"answer": answer}]}]
        return {"annotations": [*entries, {"question_id": 2, "answers": [{"answer": "same"}]}]}

    questions = [{"question_id": n, "image_id": 1, "question": "q"} for n in (1, 2)]
    write_json(tmp_path / "raw" / "a_annotations.json", annotations("cat"))
    write_json(tmp_path / "raw" / "b_annotations.json", annotations("dog"))
    write_json(tmp_path / "raw" / "questions.json", {"questions": questions})
    write_bytes(tmp_path / "raw" / "images" / "1.jpg", picture())
    path = tmp_path / "raw"
    result = run(tmp_path / "out", "conversation", "vqa_v2", path, split="evaluation")
    assert result.rejected == {"duplicate_key": 3}
    assert [record.references for record in result.records] == [("same",)]


@pytest.mark.parametrize("packing", [".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("source_format", FORMATS)
def test_packed_files_and_any_case_of_suffixes(tmp_path, source_format, packing):
    import gzip

    import zstandard

    for n in range(NUM_ENTRIES):
        write_bytes(tmp_path / "images" / f"{n}.jpg", picture(n))
    pack = zstandard.compress if packing == ".zst" else gzip.compress
    for name, (content, _) in content_of(source_format).items():
        name = name.replace(".json", ".JSON") if packing == ".GZ" else name
        write_bytes(tmp_path / f"{name}{packing}", pack(json.dumps(content).encode()))
    kept, rejected = read(tmp_path, source_format, "train")
    assert (len(kept), rejected) == (NUM_ENTRIES, [])


def test_an_annotation_file_that_swells_is_refused(tmp_path):
    import zstandard

    packed = zstandard.compress(b"[" + b" " * 50_000_000 + b"]")
    write_bytes(tmp_path / "raw" / "qa.json.zst", packed)
    top = {"limits": {"max_annotation_bytes": 1_000_000}}
    result = run(tmp_path / "out", "conversation", "dvqa", tmp_path / "raw", top=top)
    assert result.rejected == {"file_too_large": 1}


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_normal_form_are_found(tmp_path, forms):
    import unicodedata

    said, there = (unicodedata.normalize(form, "caf\xe9") for form in forms)
    sets = {
        "dvqa": ("qa.json", [{"question": "q", "answer": "a", "image": f"{said}.jpg"}]),
        "gqa": ("questions.json", {"1": {"imageId": said, "question": "q", "answer": "a"}}),
    }
    for name, (file, content) in sets.items():
        write_bytes(tmp_path / name / "images" / f"{there}.jpg", picture())
        write_json(tmp_path / name / file, content)
        result = run(tmp_path / "out" / name, "conversation", name, tmp_path / name)
        assert len(result.records) == 1, result.quarantine
    write_bytes(tmp_path / "dvqa" / "images" / f"{said}.jpg", picture(1))
    result = run(tmp_path / "exact", "conversation", "dvqa", tmp_path / "dvqa")
    assert len(result.records) == 1  # the exact name comes first
