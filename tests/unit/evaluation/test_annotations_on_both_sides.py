"""Each official layout, whole and damaged: corpus and evaluation say the same of its files."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from pydantic import TypeAdapter

from mm1_pipeline.config.evaluation import EvaluateConfig, TaskConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.source_formats import SourceFormat
from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.corpus.readers.base import RawRecord, RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.records import SegmentType
from mm1_pipeline.evaluation.evaluate import _task_entry
from mm1_pipeline.evaluation.formats.base import FormatFiles
from mm1_pipeline.evaluation.formats.dispatch import read_items
from mm1_pipeline.evaluation.tasks import load_task
from mm1_pipeline.ground.rejects import Rejected
from typed_values import entry

Read = dict[str, tuple[str, tuple[str, ...], bytes]]
"""Question, answers and image, by key."""
Rejects = set[tuple[str, str]]
"""Keys and what was said of them, with the reason first."""

LAYOUTS: dict[str, tuple[SourceFormat, TaskFormat, dict[str, str]]] = {
    "coco": (
        SourceFormat.COCO_CAPTIONS,
        TaskFormat.COCO_CAPTIONS,
        {"annotations": "captions_val2014.json"},
    ),
    "vqa": (
        SourceFormat.VQA_V2,
        TaskFormat.VQA,
        {"questions": "v2_questions.json", "annotations": "v2_annotations.json"},
    ),
    "gqa": (SourceFormat.GQA, TaskFormat.GQA, {"questions": "testdev_balanced_questions.json"}),
    "docvqa": (SourceFormat.DOC_VQA, TaskFormat.DOCVQA, {"annotations": "val_v1.0.json"}),
    "infographics": (SourceFormat.DOC_VQA, TaskFormat.DOCVQA, {"annotations": "val.json"}),
    "chartqa": (SourceFormat.CHART_QA, TaskFormat.CHARTQA, {"annotations": "test_human.json"}),
    "textcaps": (
        SourceFormat.TEXT_CAPS,
        TaskFormat.TEXTCAPS,
        {"annotations": "TextCaps_0.1_val.json"},
    ),
}
"""Formats of both sides, and what the corpus calls the files by their roles in a task."""


def write(name: str, folder: Path) -> dict[str, Path]:
    writer = {"coco": "coco_captions", "infographics": "docvqa"}.get(name, name)
    files = {role: Path(path) for role, path in getattr(benchmark_files, writer)(folder).items()}
    if name == "infographics":
        content = json.loads(files["annotations"].read_text())
        for row in content["data"]:
            row["image_local_name"] = row["image"].removeprefix("documents/")
            row["image"] = "http://x/of-the-page-where-it-was-found.png"
        files["annotations"].write_text(json.dumps(content))
    return files


def read_as_source(name: str, files: dict[str, Path], folder: Path) -> tuple[Read, Rejects]:
    source_format, _, names = LAYOUTS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for role, file_name in names.items():
        shutil.copy(files[role], folder / file_name)
    kind = source_format.layout.kind.value
    options = {"kind": kind, "format": source_format.value, "path": str(folder)}
    options |= {"split": "evaluation", "image_path": str(files["images"])}
    config = TypeAdapter(IngestConfig).validate_python({"sources": {"s": options}})
    settings = config.sources["s"]
    read, rejects = {}, set()
    source = Source("s", settings, open_files(settings), config.limits)
    for item in read_source(source):
        assert isinstance(item, RawRecord | RejectedRecord)
        key = item.key
        for file in source.files:
            key = key.removeprefix(f"{file.key}/")
        key = key.removeprefix("image_")
        why = item.why if isinstance(item, RejectedRecord) else None
        if isinstance(item, RawRecord):
            texts = [s.text or "" for s in item.segments if s.type == SegmentType.TEXT]
            try:
                image = item.images[0].load()
                assert key not in read
                read[key] = ("".join(texts), item.references, image)
            except Rejected as error:
                why = error
        if why is not None:
            rejects.add((key, "duplicate_key" if "second entry" in str(why) else str(why)))
    return read, rejects


def read_as_task(name: str, files: dict[str, Path]) -> tuple[Read, Rejects]:
    read, rejects = {}, set()
    for item in read_items(LAYOUTS[name][1], FormatFiles(files)):
        if item.failure is not None:
            rejects.add((item.key, item.failure))
        elif item.key in read:  # asked again, under a key of its own: a score counts both
            rejects.add((item.key, "duplicate_key"))
        else:
            assert isinstance(item.images[0], Path)
            read[item.key] = (item.question or "", item.references, item.images[0].read_bytes())
    return read, rejects


def compare(name: str, files: dict[str, Path], folder: Path) -> tuple[Read, Rejects]:
    task = read_as_task(name, files)
    source = read_as_source(name, files, folder / "source")
    assert source == task
    return task


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_sides_read_the_same_questions_answers_and_images(name, tmp_path):
    read, rejects = compare(name, write(name, tmp_path), tmp_path)
    assert (len(read), rejects) == (benchmark_files.COUNT, set())
    assert len({image for _, _, image in read.values()}) >= benchmark_files.COUNT // 2
    is_captions = name in ("coco", "textcaps")
    for key, (question, answers, _) in read.items():
        assert bool(question) != is_captions, key
        assert answers
        assert all(answers)


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def change_image(row: dict[str, Any], value: Any) -> None:
    names = ("image_local_name", "file_name", "imageId", "imgname", "image", "image_id")
    row[next(name for name in names if name in row)] = value


def rows_of(name: str, content: Any) -> list[Any]:
    if name == "gqa":
        return list(content.values())
    key = {"coco": "images", "vqa": "questions", "chartqa": None}.get(name, "data")
    return content if key is None else content[key]


MAIN = {"vqa": "questions", "gqa": "questions"}
"""Role of the file of questions or images, where that is not `annotations`."""


def edit_row(name: str, files: dict[str, Path], edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the entry of item 0; of TextCaps, whose item has two rows, both."""

    def edit_all(content: Any) -> None:
        for row in rows_of(name, content)[: 2 if name == "textcaps" else 1]:
            edit(row)

    change(files[MAIN.get(name, "annotations")], edit_all)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("../../etc/passwd", "unsafe_path"),
        ("gone.png", "image_missing"),
        (["a"], "malformed_record"),
    ],
)
def test_both_sides_refuse_the_same_images(name, value, reason, tmp_path):
    """Numbers and names without suffix lead nowhere: there is no such image."""
    files = write(name, tmp_path)
    edit_row(name, files, lambda row: change_image(row, value))
    read, rejects = compare(name, files, tmp_path)
    by_name = name in ("coco", "docvqa", "infographics", "chartqa")
    if name == "textcaps" and reason == "malformed_record":
        reason = "caption_without_image"  # rows of no image, one by one
    elif not by_name and (name == "vqa" or reason != "malformed_record"):
        reason = {"gqa": "unsafe_path", "textcaps": "unsafe_path"}.get(name, "")
        reason = reason if value == "../../etc/passwd" and reason else "image_missing"
    assert len(read) == benchmark_files.COUNT - 1
    assert {why.split(":")[0] for _, why in rejects} == {reason}


@pytest.mark.parametrize("name", ["vqa", "gqa", "docvqa", "infographics", "chartqa"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (2.5, "2.5"), (" red ", "red"), ("", None), (None, None), (True, None), ([], None)],
)
def test_both_sides_read_numbers_and_blanks_and_refuse_what_is_no_text(
    name, value, expected, tmp_path
):
    files = write(name, tmp_path)
    asked = "query" if name == "chartqa" else "question"
    edit_row(name, files, lambda row: row.update({asked: value}))
    read, rejects = compare(name, files, tmp_path / "asked")
    key = next(iter(read_as_task(name, write(name, tmp_path / "whole"))[0]))
    if expected is None:
        assert [found for found, _ in rejects] == [key]
    else:
        assert (read[key][0], rejects) == (expected, set())

    files = write(name, tmp_path / "b")

    def answer(row: dict[str, Any]) -> None:
        field = next(n for n in ("answers", "answer", "label") if n in row)
        row[field] = value if field != "answers" else [value] if name != "vqa" else row[field]
        if name == "vqa":
            row["answers"] = [{"answer": value}]

    if name == "vqa":
        change(files["annotations"], lambda content: answer(content["annotations"][0]))
    else:
        edit_row(name, files, answer)
    read, rejects = compare(name, files, tmp_path / "b")
    if expected is None:
        assert [found for found, _ in rejects] == [key]
    else:
        assert (read[key][1], rejects) == ((expected,), set())


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_sides_know_a_second_entry_of_a_key(name, tmp_path):
    files = write(name, tmp_path)

    def double(content: Any) -> Any:
        rows = rows_of(name, content)
        if name == "gqa":
            return None
        rows.append(copy.deepcopy(rows[0]))
        return content

    change(files[MAIN.get(name, "annotations")], double)
    if name == "gqa":
        path = files["questions"]
        text = path.read_text()
        first = json.dumps({"00000000": json.loads(text)["00000000"]})
        path.write_text(f"{text[:-1]}, {first[1:]}")
    read, rejects = compare(name, files, tmp_path)
    if name in ("chartqa", "textcaps"):  # no keys; another row of its image
        assert rejects == set()
        assert len(read) == benchmark_files.COUNT + (name == "chartqa")
    else:
        assert {why for _, why in rejects} == {"duplicate_key"}
        assert len(read) == benchmark_files.COUNT


def test_what_two_annotations_of_one_question_say_differently_is_not_asked(tmp_path):
    files = write("vqa", tmp_path)

    def double(content: Any) -> None:
        rows = content["annotations"]
        rows += [copy.deepcopy(rows[0]), {**rows[1], "answers": [{"answer": "else"}] * 10}]
        rows.append({**rows[2], "question_id": 77})
        rows[3]["question_id"] = str(rows[3]["question_id"])

    change(files["annotations"], double)
    read, rejects = compare("vqa", files, tmp_path)
    assert {(key, why.split(":")[0]) for key, why in rejects} == {
        ("annotation_1000", "duplicate_key"),
        ("annotation_1001", "duplicate_key"),
        ("1001", "duplicate_key"),
        ("annotation_77", "annotation_without_question"),
    }
    assert len(read) == benchmark_files.COUNT - 1
    assert "1003" in read  # "1003" and 1003 are one question


@pytest.mark.parametrize("name", ["vqa", "docvqa", "infographics"])
def test_an_empty_answer_among_others_stays(name, tmp_path):
    """Ten people's answers are ten, though one of them said nothing."""
    files = write(name, tmp_path)
    if name == "vqa":
        change(files["annotations"], lambda c: c["annotations"][0]["answers"][3].update(answer=""))
    else:
        edit_row(name, files, lambda row: row["answers"].append(" "))
    read, rejects = compare(name, files, tmp_path)
    answers = next(iter(read.values()))[1]
    assert rejects == set()
    assert len(answers) == (10 if name == "vqa" else 3)
    assert answers.count("") == 1


@pytest.mark.parametrize("name", ["coco", "textcaps"])
def test_captions_that_are_none_are_listed_by_both(name, tmp_path):
    files = write(name, tmp_path)

    def damage(content: Any) -> None:
        if name == "coco":
            content["annotations"][0]["caption"] = None
            content["annotations"][1]["image_id"] = 99
            content["annotations"] += [
                {"id": 90, "image_id": 2, "caption": 5},
                {"image_id": 2, "caption": "x"},
            ]
        else:
            rows = content["data"]
            rows[0]["reference_strs"] = ["a", 3]
            for row in rows[2:4]:
                del row["reference_strs"], row["caption_str"]
            rows[4]["caption_str"] = None
            rows[6]["caption_str"] = 5
            del rows[8]["image_id"]

    change(files["annotations"], damage)
    read, rejects = compare(name, files, tmp_path)
    found = sorted((key, why.split(":")[0]) for key, why in rejects)
    if name == "coco":
        assert found == [
            ("0", "image_without_caption"),
            ("1", "image_without_caption"),
            ("caption_0", "text_missing"),
            ("caption_1", "caption_without_image"),
            ("caption_90", "malformed_record"),
            ("caption_entry_21", "malformed_record"),
        ]
    else:
        assert found == [
            ("entry_3", "image_without_caption"),
            ("entry_6", "malformed_record"),
            ("entry_8", "caption_without_image"),
            ("img0", "malformed_record"),
            ("img1", "image_without_caption"),
        ]
    assert len(read) == benchmark_files.COUNT - 2


VALUES = (None, True, 1.5, -1, 10**30, float("nan"), "", " ", "\ud800", "\0", "../x", [], {}, [[]])
VALUES += (["a", None], {"a": {"b": 1}}, "x" * 5_000)


@pytest.mark.parametrize("name", LAYOUTS)
def test_mutants_are_read_alike(name, tmp_path):
    """What differs is caught whatever the fault: one random place of one file is changed."""
    rng = random.Random(name)
    whole = write(name, tmp_path)
    roles = sorted(LAYOUTS[name][2])
    texts = {role: whole[role].read_text() for role in roles}
    num_rejected = 0
    for _ in range(40):
        role = rng.choice(roles)
        content = json.loads(texts[role])
        rows = content["annotations"] if role == "annotations" and name == "vqa" else None
        rows = rows or rows_of(name, content)
        node = rng.choice(rows)
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], list | dict) or not node[key] or rng.random() < 0.4:
                break
            node = node[key]
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice(VALUES)
        whole[role].write_text(json.dumps(content))
        read, rejects = compare(name, whole, tmp_path)
        assert len(read) >= benchmark_files.COUNT - 2
        num_rejected += len(rejects)
        whole[role].write_text(texts[role])
    assert num_rejected > 8  # else nothing was changed


def test_a_task_lists_what_belongs_to_no_item_and_does_not_score_it(tmp_path, caplog):
    files = write("vqa", tmp_path)
    extra = {"question_id": 5, "answers": [{"answer": "x"}] * 10}
    change(files["annotations"], lambda content: content["annotations"].append(extra))
    paths = {role: str(path) for role, path in files.items()}
    task = load_task("vqav2", entry(TaskConfig, task="vqav2", files=paths), tmp_path, 0)
    assert (len(task.items), task.failures) == (benchmark_files.COUNT, {})
    assert task.rejects == {"annotation_5": "annotation_without_question"}
    assert "entries in its files that belong to no item: 1" in caplog.text
    told = _task_entry(task, EvaluateConfig(tasks={"vqav2": task.config}))
    assert told["rejects"] == {
        "count": {"annotation_without_question": 1},
        "listed": {"annotation_5": "annotation_without_question"},
    }


def test_every_layout_that_both_sides_have_is_compared():
    assert {source for source, _, _ in LAYOUTS.values()} == {
        SourceFormat.COCO_CAPTIONS,
        SourceFormat.VQA_V2,
        SourceFormat.GQA,
        SourceFormat.DOC_VQA,
        SourceFormat.CHART_QA,
        SourceFormat.TEXT_CAPS,
    }
