"""The embedded drawings: what is held out stays out, and the bytes are those that were made."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mm1_pipeline.evaluation.scoring.metrics import vqa_accuracy

SAMPLE = Path(__file__).parents[3] / "data/sample"
EVALUATION = SAMPLE / "eval_emoji"
STYLES = ("noto", "openmoji", "twemoji")


def read(name: str) -> Any:
    return json.loads((SAMPLE / name).read_text(encoding="utf-8"))


@cache
def rows(folder: str, style: str) -> list[dict[str, Any]]:
    return pq.read_table(SAMPLE / folder / style / "00000.parquet").to_pylist()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_files_are_those_that_the_script_made():
    for folder, expected in read("make_emoji/digests.json").items():
        paths = sorted((SAMPLE / folder).rglob("*"))
        names = {path: path.relative_to(SAMPLE).as_posix() for path in paths if path.is_file()}
        lines = [f"{digest(path.read_bytes())}  {name}\n" for path, name in names.items()]
        found = digest("".join(lines).encode())
        assert found == expected, f"{folder}: changed by hand, or not made again"


def test_no_picture_of_the_held_out_style_is_learnt_from():
    asked = {digest(path.read_bytes()) for path in (EVALUATION / "images").glob("*.webp")}
    learnt = {digest(p.read_bytes()) for p in (SAMPLE / "sft_emoji/images").rglob("*.webp")}
    for style in STYLES:
        learnt |= {digest(row["image"]) for row in rows("captions_emoji", style)}
        for row in rows("interleaved_emoji", style):
            learnt |= {digest(image) for image in row["images"] if image is not None}
    assert len(asked) == 700
    assert not asked & learnt


def test_what_is_never_shown_is_never_named_either():
    levels = read("eval_emoji/levels.json")
    names = {one["levels"][-1] for one in levels["pictures"].values()}
    unseen = names - set(levels["phrases"])
    assert len(unseen) == 100
    named = {
        re.sub(r"^(an?|the) ", "", row["name"]) for s in STYLES for row in rows("captions_emoji", s)
    }
    assert named == set(levels["phrases"])
    answers = [
        text.split("swer: ")[1]
        for style in STYLES
        for row in rows("interleaved_emoji", style)
        for text in row["texts"]
        if text is not None
    ]
    spoken = [
        turn["value"].rstrip(".")
        for entry in read("sft_emoji/conversations.json")
        for turn in entry["conversations"]
        if turn["from"] == "gpt"
    ]
    told = r"(?:This|It|That|The other one) is "
    found = {re.sub(rf"^(?:{told})?(?:(?:an?|the) )?", "", text) for text in (*answers, *spoken)}
    assert len(found & set(levels["phrases"])) > 1000, "names are not found in what is said"
    kinds = {level for path in levels["phrases"].values() for level in path[:-1]}
    assert found & unseen <= kinds, "a name that is not a kind of other things as well"
    assert unseen & kinds == {"train"}


def test_answers_credit_the_level_that_is_reached():
    pictures = read("eval_emoji/levels.json")["pictures"]
    asked = read("eval_emoji/levels_seen/annotations.json")["annotations"]
    assert len(asked) == 400
    for one in asked:
        answers = [given["answer"] for given in one["answers"]]
        levels = pictures[f"{one['image_id']:06d}.webp"]["levels"]
        credit = [round(vqa_accuracy(level, answers), 6) for level in levels]
        expected = {1: [1.0], 2: [0.3, 1.0], 3: [0.3, 0.6, 1.0]}[len(levels)]
        assert credit == expected, levels
        assert vqa_accuracy("bullet points", answers) == 0


@pytest.mark.parametrize("task", ["group", "opposite", "count"])
def test_the_question_of_few_shot_tasks_says_nothing(task):
    asked = [e for e in read("eval_emoji/few_shot/few_shot.json") if e["id"].startswith(f"{task}_")]
    assert {e["conversations"][0]["value"] for e in asked} == {"<image>\nAnswer:"}
    answers = [e["conversations"][1]["value"] for e in asked]
    assert max(map(answers.count, answers)) <= len(answers) * 0.4, "a constant answer does well"


def test_every_set_lies_beside_its_licence():
    for style in STYLES:
        licence = (SAMPLE / f"LICENSES/emoji-{style}.LICENSE").read_bytes()
        folders = ("captions_emoji", "interleaved_emoji", "sft_emoji/images")
        assert {(SAMPLE / f / style / "LICENSE").read_bytes() for f in folders} == {licence}
    fluent = (SAMPLE / "LICENSES/emoji-fluent.LICENSE").read_bytes()
    assert (EVALUATION / "images/LICENSE").read_bytes() == fluent
