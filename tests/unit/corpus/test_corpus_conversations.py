"""Conversations of every set that SFT reads, from the files that its authors publish."""

from __future__ import annotations

import json

import pytest
from corpus_builders import picture, run, write_bytes, write_json, write_parquet
from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config.conversation_prompts import OPTION_LETTER, SHORT_ANSWER, fill
from mm1_pipeline.config.ingest import FORMAT_KINDS, FORMAT_PROMPTS, RecordKind, SourceConfig
from mm1_pipeline.corpus.records import Role

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."

SETS = {
    "gqa": (
        "train_balanced_questions.json",
        {"02930152": {"imageId": "7", "question": "Is it dark?", "answer": "yes"}},
        "7.jpg",
        f"[image]|Is it dark?{SHORT}|yes",
    ),
    "a_okvqa": (
        "aokvqa_v1p0_train.json",
        [
            {
                "split": "train",
                "image_id": 7,
                "question_id": "22MexNkBPpdZGX6sxbxVBH",
                "question": "Who eats?",
                "choices": ["rock", "fox", "hat", "car"],
                "correct_choice_idx": 1,
                "direct_answers": ["fox", "fox", "a fox"],
            }
        ],
        "000000000007.jpg",
        f"[image]|Who eats?\nA. rock\nB. fox\nC. hat\nD. car{LETTER}|B",
    ),
    "ocr_vqa": (
        "dataset.json",
        {
            "0761183272": {
                "imageURL": "http://x/i.jpg",
                "questions": ["Who wrote this?", "What is the genre?"],
                "answers": ["A. Author", "Calendars"],
                "title": "T",
                "split": 1,
            },
            "076": {"questions": ["held out?"], "answers": ["yes"], "split": 3},
        },
        "0761183272.jpg",
        f"[image]|Who wrote this?{SHORT}|A. Author|What is the genre?{SHORT}|Calendars",
    ),
    "text_caps": (
        "TextCaps_0.1_train.json",
        {"data": [{"image_id": "00ab", "caption_str": "A sign says stop.", "caption_id": 4}]},
        "00ab.jpg",
        f"[image]|{CAPTION}|A sign says stop.",
    ),
    "dvqa": (
        "train_qa.json",
        [
            {
                "question": "How many bars?",
                "answer": 4,
                "question_id": 9,
                "image": "bar_train_00000001.png",
                "template_id": "structure",
            }
        ],
        "bar_train_00000001.png",
        f"[image]|How many bars?{SHORT}|4",
    ),
    "chart_qa": (
        "train_human.json",
        [{"imgname": "two_col_21.png", "query": "Highest?", "label": "21.5"}],
        "two_col_21.png",
        f"[image]|Highest?{SHORT}|21.5",
    ),
    "ai2d": (
        "0.png.json",
        {
            "imageName": "0.png",
            "questions": {
                "What is C?": {
                    "answerTexts": ["egg", "larva"],
                    "correctAnswer": 1,
                    "questionId": "0.png-1",
                },
                "And A?": {"answerTexts": ["egg", "larva"], "correctAnswer": 0},
            },
        },
        "0.png",
        f"[image]|What is C?\nA. egg\nB. larva{LETTER}|B|And A?\nA. egg\nB. larva{LETTER}|A",
    ),
    "doc_vqa": (
        "train_v1.0.json",
        {
            "dataset_name": "docvqa",
            "data": [
                {
                    "questionId": 337,
                    "question": "What is the date?",
                    "image": "documents/xnbl0037_1.png",
                    "answers": ["1/8/93"],
                }
            ],
        },
        "xnbl0037_1.png",
        f"[image]|What is the date?{SHORT}|1/8/93",
    ),
    "vqa_v2": (
        "questions.json",
        {"questions": [{"question_id": 5, "image_id": 7, "question": "What sport?"}]},
        "COCO_train2014_000000000007.jpg",
        f"[image]|What sport?{SHORT}|race",
    ),
    "coco_captions": (
        "captions_train.json",
        {
            "images": [{"id": 7, "file_name": "7.jpg"}],
            "annotations": [{"id": 1, "image_id": 7, "caption": "A dog."}],
        },
        "7.jpg",
        f"[image]|{CAPTION}|A dog.",
    ),
}
"""By format: file name, content, image name, and the turns that are expected."""


def make_set(folder, name):
    file, content, image, expected = SETS[name]
    write_json(folder / file, content)
    write_bytes(folder / "images" / image, picture(kind=image[-3:].replace("jpg", "jpeg")))
    if name == "vqa_v2":  # OKVQA's annotations, which name no commonest answer
        answers = [{"answer": text} for text in ("ride", "race", "race")]
        annotations = [{"question_id": 5, "image_id": 7, "answers": answers}]
        write_json(folder / "annotations.json", {"annotations": annotations})
    return expected


@pytest.mark.parametrize("name", SETS)
def test_a_set_becomes_conversations(tmp_path, name):
    expected = make_set(tmp_path / "raw", name)
    result = run(tmp_path / "out", "conversation", name, tmp_path / "raw")
    assert (result.texts, result.rejected) == ([expected], {})
    (record,) = result.records
    speakers = [s.role for s in record.segments if s.text is not None]
    assert speakers == [Role.HUMAN, Role.ASSISTANT] * (len(speakers) // 2)
    assert record.segments[0].role == Role.HUMAN


def test_every_conversation_format_is_tried_above():
    made = {name for name in FORMAT_KINDS if FORMAT_KINDS[name] == RecordKind.CONVERSATION}
    assert made - {"llava", "synth_dog"} <= set(SETS)
    assert made - {"llava"} <= set(FORMAT_PROMPTS)


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
        assert SHORT not in record.segments[1].text
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
