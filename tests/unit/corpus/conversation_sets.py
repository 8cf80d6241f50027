"""Each set of SFT in miniature, in the files that its authors publish."""

from __future__ import annotations

from pathlib import Path

from corpus_builders import picture, write_bytes, write_json

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


def make_set(folder: Path, name: str) -> str:
    """Writes a set and returns the turns that are expected of it."""
    file, content, image, expected = SETS[name]
    write_json(folder / file, content)
    write_bytes(folder / "images" / image, picture(kind=image[-3:].replace("jpg", "jpeg")))
    if name == "vqa_v2":  # OKVQA's annotations, which name no commonest answer
        answers = [{"answer": text} for text in ("ride", "race", "race")]
        annotations = [{"question_id": 5, "image_id": 7, "answers": answers}]
        write_json(folder / "annotations.json", {"annotations": annotations})
    return expected
