"""Benchmark files in every form that users meet: lists, lines, gzip, marks, line ends, doubles."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import COUNT, POPE_SIZES, WRITERS
from evaluation_samples import encoded_image, question_record, sample_questions

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.formats.base import read_json, read_json_lines
from mm1_pipeline.evaluation.generation.answer_log import Answer
from mm1_pipeline.evaluation.prompts.prompts import build_prompts
from mm1_pipeline.evaluation.scoring.baselines import most_frequent_answer
from mm1_pipeline.evaluation.scoring.scoring import constant_value, score_outputs
from mm1_pipeline.evaluation.tasks import Task, load_task
from mm1_pipeline.evaluation.text.text_tasks import load_text_task
from typed_values import entry

ROWS = {
    "pope": tuple(POPE_SIZES),
    "vizwiz": ("annotations",),
    "chartqa": ("annotations",),
    "llava_w": ("questions", "context", "references"),
}
"""Roles whose files are one table."""
TABLES = {
    "vqav2": {"questions": "questions", "annotations": "annotations"},
    "textvqa": {"annotations": "data"},
    "docvqa": {"annotations": "data"},
    "textcaps": {"annotations": "data"},
    "coco": {"annotations": "images"},
}
"""Roles whose files hold a table under a name."""
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "as_it_is": bytes,
    "gzip": gzip.compress,
    "byte_order_mark": lambda content: b"\xef\xbb\xbf" + content,
    "windows": lambda content: content.replace(b"\n", b"\r\n"),
    "utf-16": lambda content: content.decode().encode("utf-16"),
    "all_of_them": lambda content: gzip.compress(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")),
}
LAYOUTS: dict[str, Callable[[list[Any]], str]] = {
    "list": json.dumps,
    "printed_list": lambda rows: json.dumps(rows, indent=4) + "\n",
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines_without_end": lambda rows: "\n".join(json.dumps(row) for row in rows),
    "unescaped_lines": lambda rows: "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows),
}
SIGNS = "a\u2028b\u2029c\u0085d\x1ce\x0bf\x0cg\u00e9"
"""Line ends to Python, but not to JSON lines."""


def load(name: str, files: dict[str, str], folder: Path, **changes: Any) -> Task:
    return load_task(name, TaskConfig(task=name, files=files, **changes), folder, 0)


def rows_of(path: Path) -> list[Any]:
    text = path.read_text()
    return json.loads(text) if text.startswith("[") else list(map(json.loads, text.splitlines()))


@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_is_read_in_every_form(layout, form, tmp_path):
    for name, roles in ROWS.items():
        files = WRITERS[name](tmp_path / name)
        expected = load(name, files, tmp_path)
        for role in roles:
            path = Path(files[role])
            path.write_bytes(BYTES[form](LAYOUTS[layout](rows_of(path)).encode()))
        assert load(name, files, tmp_path).items == expected.items
        assert not expected.failures


@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("layout", ["object", "list", "lines"])
def test_a_table_under_a_name_is_read_in_every_form(layout, form, tmp_path):
    for name, roles in TABLES.items():
        files = WRITERS[name](tmp_path / name)
        expected = load(name, files, tmp_path)
        for role, key in roles.items():
            path = Path(files[role])
            content = json.loads(path.read_text())
            text = json.dumps(content) if layout == "object" else LAYOUTS[layout](content[key])
            path.write_bytes(BYTES[form](text.encode()))
        assert load(name, files, tmp_path).items == expected.items
        assert not expected.failures


@pytest.mark.parametrize("form", BYTES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_tasks_are_read_in_every_form(layout, form, tmp_path):
    rows = [{"text": f"he saw the {word}"} for word in ("cat", "dog", "emu")]
    path, labels = tmp_path / "rows", tmp_path / "labels"
    path.write_bytes(BYTES[form](LAYOUTS[layout](rows).encode()))
    task = load_text_task(
        "l", entry(TextTaskConfig, task="lambada", files={"questions": str(path)}), 0
    )
    assert [item.options for item in task.items] == [("cat",), ("dog",), ("emu",)]
    solutions = [{"goal": "g", "sol1": f"a{n}", "sol2": f"b{n}"} for n in range(2)]
    path.write_bytes(BYTES[form](LAYOUTS[layout](solutions).encode()))
    if form != "utf-16":
        labels.write_bytes(BYTES[form](b"1\n0\n"))
    else:
        labels.write_bytes(b"1\n0\n")
    config = entry(
        TextTaskConfig, task="piqa", files={"questions": str(path), "labels": str(labels)}
    )
    assert [item.right for item in load_text_task("p", config, 0).items] == [(1,), (0,)]
    for name, row in {
        "sciq": {"question": "q", "support": "", "correct_answer": "c"}
        | {f"distractor{n}": str(n) for n in (1, 2, 3)},
        "webqs": {"utterance": "q", "targetValue": "(list (description b))"},
    }.items():
        path.write_bytes(BYTES[form](LAYOUTS[layout]([row, row]).encode()))
        found = load_text_task(
            name, entry(TextTaskConfig, task=name, files={"questions": str(path)}), 0
        )
        assert len(found.items) == 2
        assert all(item.failure is None for item in found.items)


def test_only_line_feeds_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": SIGNS}, {"text": "x"}]
    for is_ascii in (True, False):
        lines = "\r\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in rows)
        # JSON does not escape these three outside of ASCII; control characters it does.
        path.write_text(lines, encoding="utf-8", newline="")
        assert read_json_lines(path) == rows
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert read_json_lines(path) == read_json(path) == rows


def test_a_bad_line_fails_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": \n[1]\n')
    first, second, third, fourth = read_json_lines(path)
    assert (first, fourth) == ({"a": 1}, [1])
    assert (second, third) == ('{"a": "\ufffd"}', '{"a":')
    path.write_bytes(b"[1]\n[2]\n")
    assert read_json_lines(path) == [[1], [2]]


@pytest.mark.parametrize(
    "content", [gzip.compress(b"[1]", mtime=0)[:-3], b"\x1f\x8b\x00", b"{", b"", b"x\ny"]
)
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Found no readable JSON at .*broken\.json"):
        read_json(path)


def test_one_bad_file_of_mme_fails_alone(tmp_path):
    files = WRITERS["mme_perception"](tmp_path)
    root = Path(files["data"])
    (root / "existence" / "001.txt").write_bytes(b"\xff\xfe\xfd\tYes\n")
    (root / "existence" / "002.txt").write_text(
        "Is it\u2028a box?\tYes\r\nIs it?\tNo\r\n", newline=""
    )
    task = load("mme_perception", files, tmp_path)
    assert list(task.failures) == ["existence/001/0"]
    assert len(task.items) == COUNT - 1
    questions = {item.key: item.question for item in task.items}
    assert questions["existence/002/0"] == "Is it\u2028a box?"


def doubled(name: str, folder: Path) -> dict[str, str]:
    """The benchmark with its first four rows twice more."""
    files = WRITERS[name](folder)
    roles = dict.fromkeys(ROWS.get(name, ()), "") | TABLES.get(name, {})
    role = next(iter(roles))
    path = Path(files[role])
    content = rows_of(path) if not roles[role] else json.loads(path.read_text())
    rows = content if isinstance(content, list) else content[roles[role]]
    rows += rows[:4] + rows[:4]
    path.write_text(json.dumps(content))
    return files


@pytest.mark.parametrize(("name", "count"), [("vqav2", 28), ("textvqa", 28), ("vizwiz", 28)])
def test_items_with_one_key_are_all_asked_and_scored(name, count, tmp_path, tokenizer, caplog):
    files = doubled(name, tmp_path)
    with caplog.at_level(logging.WARNING):
        task = load(name, files, tmp_path, shots=(0,))
    assert "found 8 of 28 items under keys that others have" in caplog.text
    assert (len(task.items), task.failures) == (count, {})
    assert len({item.key for item in task.items}) == len(task.pool) == count
    first, again, third = (task.items[n] for n in (0, COUNT, COUNT + 4))
    assert again.key == f"{first.key} (again, 1)"
    assert third.key == f"{first.key} (again, 2)"
    prompts = build_prompts(task, 0, 0, tokenizer, 2)
    right = {item.key: item.references[0] for item in task.items}
    scored = score_outputs(task, 0, prompts, [Answer(right[prompt.key]) for prompt in prompts])
    # 10, 3, 2 and 1 of ten agree in turn; the doubles are seven whole turns with the others.
    assert scored.value == pytest.approx(70.0, abs=1e-9)
    assert len({row["id"] for row in scored.rows}) == count


def test_a_double_that_has_the_key_of_another_double_is_kept_too(make_task):
    def record(key: str, number: int):
        return question_record(key, encoded_image(number), "what?", [f"word{number}"] * 10)

    keys = ["a (again, 1)", "a", "a", "a (again, 1)", "a", "b"]
    records = [record(key, number) for number, key in enumerate(keys)]
    task = make_task(records, Metric.VQA_ACCURACY, source="doubles")
    assert len({item.key for item in task.items}) == len(keys)
    assert [item.references[0] for item in task.items] == [f"word{n}" for n in range(len(keys))]
    assert len(task.pool) == len(keys)


def test_records_with_one_key_are_all_scored(make_task, tokenizer, caplog):
    records = sample_questions()
    with caplog.at_level(logging.WARNING):
        task = make_task([*records, *records[:5]], Metric.VQA_ACCURACY, source="twice", shots=(0,))
    assert "found 5 of 17 items" in caplog.text
    prompts = build_prompts(task, 0, 0, tokenizer, 2)
    right = {item.key: item.references[0] for item in task.items}
    answers = [Answer(f" {right[prompt.key]}\n") for prompt in prompts]
    best = score_outputs(task, 0, prompts, answers).value
    alone = make_task(records, Metric.VQA_ACCURACY, source="once", shots=(0,))
    prompts = build_prompts(alone, 0, 0, tokenizer, 2)
    answers = [Answer(f" {right[prompt.key]}\n") for prompt in prompts]
    assert len(task.items) == 17
    assert score_outputs(alone, 0, prompts, answers).value > 0
    weights = [row["score"] for row in score_outputs(alone, 0, prompts, answers).rows]
    assert best == pytest.approx((sum(weights) + sum(weights[:5])) / 17)


def test_questions_of_text_tasks_with_one_id_are_all_asked(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    choices = [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]
    ids = ["x", "x", "x (row 1)", "x", "y"]
    rows = [
        {"id": key, "question": {"stem": f"{n}?", "choices": choices}, "answerKey": "A"}
        for n, key in enumerate(ids)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        task = load_text_task(
            "a", entry(TextTaskConfig, task="arc_easy", files={"questions": str(path)}), 0
        )
    assert len({item.key for item in task.items}) == len(task.pool) == len(ids)
    assert "found 3 of 5 questions under ids that others have" in caplog.text


def test_a_file_to_hand_in_has_each_question_once(tmp_path, tokenizer):
    files = WRITERS["vizwiz_test"](tmp_path)
    path = Path(files["annotations"])
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, rows[3]]))
    task = load("vizwiz_test", files, tmp_path)
    prompts = build_prompts(task, 0, 0, tokenizer, 2)
    scored = score_outputs(task, 0, prompts, [Answer("Red")] * len(prompts))
    assert scored.submission is not None
    assert [row["image"] for row in json.loads(scored.submission.text)] == [
        row["image"] for row in rows
    ]


CONSTANTS = ("yes", "no", "garbage", "", "A", "B", "0")


UNSCORED = {"llava_w", "mm_vet"} | {name for name in WRITERS if name.endswith("_test")}
"""Marked by a judge, or by a server that knows the answers."""


@pytest.mark.parametrize("name", sorted(set(WRITERS) - UNSCORED))
def test_no_constant_answer_beats_the_frequent_one(name, tmp_path):
    is_caption = name in ("coco", "nocaps", "textcaps")
    words = {"caption_words": "regex"} if is_caption else {}
    task = load(name, WRITERS[name](tmp_path), tmp_path, **words)
    frequent = constant_value(task, most_frequent_answer(task))
    given = {text for item in task.items for text in item.references}
    found = {text: constant_value(task, text) for text in {*given, *CONSTANTS}}
    assert frequent == pytest.approx(max(found.values()), abs=1e-9), max(
        found, key=found.__getitem__
    )


def test_the_frequent_answer_to_pope_is_yes(tmp_path):
    task = load("pope", WRITERS["pope"](tmp_path), tmp_path)
    assert most_frequent_answer(task) == "yes"
    assert constant_value(task, "yes") == pytest.approx(200 / 3)
    assert constant_value(task, "no") == 0.0


def test_the_frequent_number_is_near_others(tmp_path):
    task = load("chartqa", WRITERS["chartqa"](tmp_path), tmp_path)
    assert most_frequent_answer(task) == "1900"  # within 5 % of 2000
    assert constant_value(task, "1900") == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("name", "pattern"), [("mmmu_val", "*.parquet"), ("mme_perception", "*.txt")]
)
def test_what_lies_beside_questions_is_passed_over(name, pattern, tmp_path):
    files = WRITERS[name](tmp_path)
    whole = load(name, files, tmp_path)
    question_file = next(Path(files["data"]).rglob(pattern))
    (question_file.parent / f"._{question_file.name}").write_bytes(b"\0\5\26\7")  # of macOS
    (question_file.parent / "README.txt").write_text("Notes")
    (question_file.parent / ".DS_Store").write_bytes(b"\0")
    assert [item.key for item in load(name, files, tmp_path).items] == [
        item.key for item in whole.items
    ]


@pytest.mark.parametrize("kind", ["pipe", "gone", "self"])
def test_questions_that_are_no_file_are_said_and_never_waited_for(kind, tmp_path):
    def spoil(path: Path) -> None:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path.name if kind == "self" else "nowhere")

    for name, role in (("vqav2", "questions"), ("mmbench", "data"), ("chartqa", "annotations")):
        files = WRITERS[name](tmp_path / name)
        spoil(Path(files[role]))
        with pytest.raises(ValueError, match="ound no file at"):
            load(name, files, tmp_path)
    files = WRITERS["mmmu_val"](tmp_path / "mmmu")
    spoil(Path(files["data"]) / "Art.parquet")
    with pytest.raises(ValueError, match=r"Found no file at .*Art\.parquet"):
        load("mmmu_val", files, tmp_path)
    files = WRITERS["mme_perception"](tmp_path / "mme")
    folder = Path(files["data"]) / "existence"
    spoil(folder / "000.txt")
    spoil(folder / "001.jpg")
    task = load("mme_perception", files, tmp_path)
    failed = " ".join(task.failures)
    assert "existence/000" in failed
    assert "existence/001" in failed
    assert len(task.failures) == 3  # A file of questions, and two questions about an image.
