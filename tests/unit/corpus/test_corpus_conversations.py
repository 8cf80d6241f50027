"""Conversations of every set that SFT reads, from the files that its authors publish."""

from __future__ import annotations

import json

import pytest
from corpus_builders import picture, run, write_bytes, write_json, write_parquet
from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config.conversation_prompts import OPTION_LETTER, SHORT_ANSWER, fill
from mm1_pipeline.config.ingest import SourceConfig, SourceFormat
from mm1_pipeline.corpus.records import Role
from source_samples import LETTER, SETS, SHORT, make_set
from typed_values import not_none


@pytest.mark.parametrize("name", SETS)
def test_a_set_becomes_conversations(tmp_path, name):
    expected = make_set(tmp_path / "raw", name)
    result = run(tmp_path / "out", "conversation", name, tmp_path / "raw")
    assert (result.texts, result.rejected) == ([expected], {})
    (record,) = result.records
    speakers = [s.role for s in record.segments if s.text is not None]
    assert speakers == [Role.HUMAN, Role.ASSISTANT] * (len(speakers) // 2)
    assert record.segments[0].role == Role.HUMAN


def test_every_set_is_tried_above():
    assert {item.value for item in SourceFormat if item.layout.reader == "question_sets"} <= set(
        SETS
    )


@pytest.mark.parametrize("name", ["gqa", "a_okvqa", "ocr_vqa", "ai2d", "doc_vqa", "dvqa"])
def test_evaluation_sources_ask_and_keep_the_answers_apart(tmp_path, name):
    make_set(tmp_path / "raw", name)
    content = json.loads((tmp_path / "raw" / SETS[name][0]).read_text())
    if name == "ocr_vqa":
        content["0761183272"]["split"] = 2
        del content["076"]
        write_json(tmp_path / "raw" / SETS[name][0], content)
    result = run(tmp_path / "out", "conversation", name, tmp_path / "raw", split="evaluation")
    assert result.rejected == {}
    assert len(result.records) == (2 if name in ("ocr_vqa", "ai2d") else 1)
    for record in result.records:
        assert {s.role for s in record.segments} == {Role.HUMAN}
        assert record.references
        assert SHORT not in not_none(record.segments[1].text)
    if name == "a_okvqa":
        assert result.records[0].references == ("fox", "fox", "a fox")
        assert result.records[0].metadata["correct"] == 1


def test_synth_dog_and_another_prompt(tmp_path):
    truth = json.dumps({"gt_parse": {"text_sequence": "716"}})
    rows = [
        {"image": {"bytes": picture(1), "path": None}, "ground_truth": truth},
        {"image": {"bytes": picture(2), "path": None}, "ground_truth": "{}"},
        {"image": {"bytes": picture(3), "path": None}, "ground_truth": "{"},
    ]
    write_parquet(tmp_path / "raw" / "train.parquet", rows)
    result = run(tmp_path / "out", "conversation", "synth_dog", tmp_path / "raw", prompt="Read it.")
    assert result.texts == ["[image]|Read it.|716"]
    assert result.rejected == {"text_missing": 1, "invalid_json": 1}


def test_bad_entries_of_sets_say_what_is_wrong(tmp_path):
    entries = [
        {"question_id": "a", "image_id": 7, "question": "q", "choices": ["x"]},
        {"question_id": "b", "image_id": 7, "question": " ", "direct_answers": ["x"]},
        {"question_id": "c", "image_id": 7, "question": "q", "direct_answers": ["x"]},
        {"question_id": "d", "image_id": 8, "question": "q", "choices": ["x"],
         "correct_choice_idx": 0},
        {"question_id": "e", "image_id": 7, "question": "q", "choices": ["x"],
         "correct_choice_idx": 3},
        "none",
    ]  # fmt: skip
    write_json(tmp_path / "raw" / "aokvqa.json", entries)
    write_bytes(tmp_path / "raw" / "7.jpg", picture())
    result = run(tmp_path / "out", "conversation", "a_okvqa", tmp_path / "raw")
    reasons = {row["key"].rsplit("/", 1)[1]: row["reason"] for row in result.quarantine}
    assert reasons == {
        "a": "question_without_annotation",
        "b": "text_missing",
        "c": "question_without_annotation",
        "d": "image_missing",
        "e": "question_without_annotation",
        "entry_5": "malformed_record",
    }


def test_share_gpt_and_openai_spellings(tmp_path):
    entries = [
        {
            "id": "chat_1",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "Hi"},
                {"from": "chatgpt", "value": "Hello"},
            ],
        },
        {
            "id": "chat_2",
            "images": ["1.jpg"],
            "messages": [
                {"role": "user", "content": "<image>What?"},
                {"role": "assistant", "content": "Red."},
            ],
        },
    ]
    write_json(tmp_path / "raw" / "chat.json", entries)
    write_bytes(tmp_path / "raw" / "1.jpg", picture())
    result = run(tmp_path / "out", "conversation", "llava", tmp_path / "raw")
    assert result.texts == ["Be brief.|Hi|Hello", "[image]|What?|Red."]
    assert result.records[0].segments[0].role == Role.SYSTEM


def test_ids_choose_the_entries_of_a_source(tmp_path):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    entries = [{"id": f"{name}_{n}", "conversations": turns} for name in "ab" for n in range(3)]
    write_json(tmp_path / "raw" / "chat.json", entries)
    evaluated = run(
        tmp_path / "out", "conversation", "llava", tmp_path / "raw", ids="b_*", split="evaluation"
    )
    assert [record.metadata["id"] for record in evaluated.records] == ["b_0", "b_1", "b_2"]
    assert evaluated.report["read"] == 3
    assert all(record.references == ("a",) for record in evaluated.records)
    assert all(len(record.segments) == 1 for record in evaluated.records)


def test_fill_takes_questions_as_they_are():
    assert fill(SHORT_ANSWER, "What is {question}?") == f"What is {{question}}?{SHORT}"
    filled = fill(OPTION_LETTER, "Which {choices}?", ("x", "y"))
    assert filled == f"Which {{choices}}?\nA. x\nB. y{LETTER}"


@pytest.mark.parametrize(
    ("source_format", "prompt", "problem"),
    [
        ("vqa_v2", "no slot", "expected text with '{question}' 1 time"),
        ("text_caps", "{question}", "expected text with '{question}' 0 time"),
        ("llava", "{question}", "brings its own turns"),
        ("gqa", " ", "expected text with"),
    ],
)
def test_prompts_are_checked(source_format, prompt, problem):
    source = {"kind": "conversation", "format": source_format, "path": "x", "prompt": prompt}
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(SourceConfig).validate_python(source)
