"""Writes 20 items of every benchmark in its official file format, with images made here.

Every function takes a folder and gives the paths by role, as `files` of a task has them. Item i
of 20 is about the word `WORDS[i]`; what the right answer is, each function says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from evaluation_samples import encoded_image

COUNT = 20
WORDS = [
    "anvil",
    "badge",
    "cello",
    "dingo",
    "easel",
    "ferry",
    "glove",
    "heron",
    "ivory",
    "jolly",
    "kiosk",
    "lemon",
    "mango",
    "nylon",
    "otter",
    "piano",
    "quilt",
    "raven",
    "sable",
    "tulip",
]

Files = dict[str, str]


def write_images(folder: Path, names: list[str], first: int = 0) -> str:
    for number, name in enumerate(names, first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(number))
    return str(folder)


def write_json(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def caption(number: int) -> str:
    """Five words that no other caption has, so a right caption has CIDEr 10."""
    return " ".join(f"{WORDS[number]}{letter}" for letter in "abcde")


def ten_answers(number: int) -> list[str]:
    """10, 3, 2 or 1 people say the item's word: a VQA accuracy of 1, 0.9, 0.6 or 0.3."""
    agreeing = (10, 3, 2, 1)[number % 4]
    return [WORDS[number]] * agreeing + [f"other{n}" for n in range(10 - agreeing)]


def four_options(number: int) -> list[str]:
    """The right one, the item's word, stands at place i mod 4."""
    options = ["granite", "walnut", "copper", "velvet"]
    options[number % 4] = WORDS[number]
    return options


def karpathy(folder: Path) -> Files:
    def image(number: int, split: str) -> dict[str, Any]:
        return {
            "filepath": "val2014",
            "filename": f"{split}_{number}.png",
            "cocoid": number,
            "imgid": number,
            "split": split,
            "sentences": [{"raw": caption(number % COUNT)}],
        }

    rows = [image(n, "test") for n in range(COUNT)] + [image(100 + n, "train") for n in range(6)]
    rows += [image(200 + n, "restval") for n in range(6)] + [image(300, "val")]
    images = write_images(folder / "coco", [f"val2014/{row['filename']}" for row in rows])
    annotations = write_json(folder / "dataset_coco.json", {"dataset": "coco", "images": rows})
    return {"annotations": annotations, "images": images}


def coco_captions(folder: Path) -> Files:
    images = [
        {"id": n, "file_name": f"{n:04d}.png", "domain": ("in-domain", "out-domain")[n % 2]}
        for n in range(COUNT)
    ]
    texts = [{"id": n, "image_id": n, "caption": caption(n)} for n in range(COUNT)]
    content = {"images": images, "annotations": texts}
    return {
        "annotations": write_json(folder / "nocaps_val_4500_captions.json", content),
        "images": write_images(folder / "images", [row["file_name"] for row in images]),
    }


def textcaps(folder: Path) -> Files:
    rows = [
        {
            "image_id": f"img{n}",
            "caption_str": caption(n),
            "reference_strs": [caption(n)],
            "image_path": f"train/img{n}.jpg",
        }
        for n in range(COUNT)
        for _ in range(2)  # a row a caption, as in the training file
    ]
    return {
        "annotations": write_json(folder / "TextCaps_0.1_val.json", {"data": rows}),
        "images": write_images(folder / "images", [f"img{n}.jpg" for n in range(COUNT)]),
    }


def vqa(folder: Path, split: str = "val2014", first: int = 0) -> Files:
    """Two questions an image, as VQAv2 has several."""
    numbers = range(first, first + COUNT)
    questions = [
        {"question_id": 1000 + n, "image_id": n // 2, "question": f"what is {WORDS[n - first]}?"}
        for n in numbers
    ]
    annotations = [
        {
            "question_id": 1000 + n,
            "image_id": n // 2,
            "answer_type": ("yes/no", "number", "other")[n % 3],
            "question_type": "what is",
            "multiple_choice_answer": WORDS[n - first],
            "answers": [
                {"answer_id": i + 1, "answer": text, "answer_confidence": "yes"}
                for i, text in enumerate(ten_answers(n - first))
            ],
        }
        for n in numbers
    ]
    names = [f"COCO_{split}_{n:012d}.jpg" for n in range(first // 2, (first + COUNT) // 2)]
    return {
        "questions": write_json(folder / f"q_{split}.json", {"questions": questions}),
        "annotations": write_json(folder / f"a_{split}.json", {"annotations": annotations}),
        "images": write_images(folder / split, names, first),
    }


def vqa_test(folder: Path) -> Files:
    """The test set has questions only."""
    files = vqa(folder, "test2015")
    Path(files.pop("annotations")).unlink()
    return files


def textvqa(folder: Path, *, is_hidden: bool = False) -> Files:
    rows = [
        {
            "question_id": n,
            "image_id": f"img{n}",
            "question": f"what is written: {WORDS[n]}?",
            **({} if is_hidden else {"answers": ten_answers(n)}),
        }
        for n in range(COUNT)
    ]
    return {
        "annotations": write_json(folder / "TextVQA_0.5.1_val.json", {"data": rows}),
        "images": write_images(folder / "images", [f"img{n}.jpg" for n in range(COUNT)]),
    }


def vizwiz(folder: Path, *, is_hidden: bool = False) -> Files:
    def answered(number: int) -> dict[str, Any]:
        texts = ten_answers(number)
        answers = [{"answer": text, "answer_confidence": "yes"} for text in texts]
        return {"answers": answers, "answer_type": "other", "answerable": 1}

    rows = [
        {
            "image": f"VizWiz_val_{n:08d}.jpg",
            "question": f"what is this {WORDS[n]}?",
            **({} if is_hidden else answered(n)),
        }
        for n in range(COUNT)
    ]
    return {
        "annotations": write_json(folder / "val.json", rows),
        "images": write_images(folder / "images", [row["image"] for row in rows]),
    }


def gqa(folder: Path) -> Files:
    rows = {
        f"{n:08d}": {
            "question": f"which thing is the {WORDS[n]}?",
            "imageId": f"n{n}",
            "answer": WORDS[n],
            "fullAnswer": f"It is the {WORDS[n]}.",
            "types": {"structural": ("query", "verify")[n % 2], "semantic": "obj"},
        }
        for n in range(COUNT)
    }
    return {
        "questions": write_json(folder / "testdev_balanced_questions.json", rows),
        "images": write_images(folder / "images", [f"n{n}.jpg" for n in range(COUNT)]),
    }


def docvqa(folder: Path) -> Files:
    rows = [
        {
            "questionId": n,
            "question": f"what does it say of {WORDS[n]}?",
            "image": f"documents/page{n}.png",
            "answers": [WORDS[n], f"the {WORDS[n]}"],
        }
        for n in range(COUNT)
    ]
    return {
        "annotations": write_json(folder / "val_v1.0.json", {"data": rows}),
        "images": write_images(folder / "documents", [f"page{n}.png" for n in range(COUNT)]),
    }


def chartqa(folder: Path) -> Files:
    rows = [
        {"imgname": f"{n}.png", "query": f"how many {WORDS[n]}?", "label": str(100 * (n + 1))}
        for n in range(COUNT)
    ]
    return {
        "annotations": write_json(folder / "test_human.json", rows),
        "images": write_images(folder / "png", [row["imgname"] for row in rows]),
    }


def scienceqa(folder: Path) -> Files:
    """Beside the 20 with an image, 3 without, and one of another split."""
    problems = {
        str(n): {
            "question": f"Which is the {WORDS[n % COUNT]}?",
            "choices": four_options(n % COUNT),
            "answer": n % 4,
            "hint": "Look closely." if n % 2 else "",
            "image": "image.png" if n < COUNT or n == 23 else None,
            "subject": ("natural science", "language science")[n % 2],
            "split": "train" if n == 23 else "test",
        }
        for n in range(COUNT + 4)
    }
    splits = {"train": ["23"], "test": [str(n) for n in range(COUNT + 3)]}
    names = [f"test/{n}/image.png" for n in range(COUNT)]
    return {
        "problems": write_json(folder / "problems.json", problems),
        "splits": write_json(folder / "pid_splits.json", splits),
        "images": write_images(folder / "images", names),
    }


def mmmu(folder: Path, *, is_hidden: bool = False) -> Files:
    """Question 0 has two images that it names; every fifth has no options."""

    def row(number: int) -> dict[str, Any]:
        is_open = number % 5 == 4
        return {
            "id": f"validation_{('Art', 'Physics')[number % 2]}_{number}",
            "question": "<image 1> or <image 2>: which is it?"
            if number == 0
            else f"<image 1> What is the {WORDS[number]}?",
            "options": "[]" if is_open else str(four_options(number)),
            "answer": "?" if is_hidden else f"{number}.5" if is_open else "ABCD"[number % 4],
            "question_type": "open" if is_open else "multiple-choice",
            "image_1": {"bytes": encoded_image(number), "path": f"{number}.png"},
            "image_2": {"bytes": encoded_image(90), "path": "90.png"} if number == 0 else None,
        }

    data = folder / "MMMU"
    data.mkdir(parents=True)
    rows = [row(number) for number in range(COUNT)]
    for subject in ("Art", "Physics"):
        part = [r for r in rows if subject in r["id"]]
        pq.write_table(pa.Table.from_pylist(part), data / f"{subject}.parquet")
    return {"data": str(data)}


def mmbench(folder: Path) -> Files:
    """Every third question has two options; question 1 names the image of question 0."""
    lines = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
    for n in range(COUNT):
        options = four_options(n)
        if n % 3 == 0:
            options = [WORDS[n], "granite", "", ""]
        right = "ABCD"[options.index(WORDS[n])]
        image = "0" if n == 1 else base64.b64encode(encoded_image(n)).decode()
        hint = "Mind the colour." if n % 2 else ""
        category = ("attribute", "relation")[n % 2]
        fields = [str(n), f"Which is the {WORDS[n]}?", hint, *options, right, category, image]
        lines.append("\t".join(fields))
    path = folder / "mmbench_dev.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return {"data": str(path)}


def mmbench_passes(folder: Path, *, is_hidden: bool = False) -> Files:
    """The official layout: a row for each rotation, whose image is named by the first row's index.

    Questions, options and wanted letters are those of `mmbench`, rotated by hand: the option at
    place p of pass k is that at place (p + k) of the first pass.
    """
    names = ["index", "question", "hint", *"ABCD", *(["answer"] if not is_hidden else [])]
    lines = ["\t".join([*names, "category", "l2-category", "image", "split"])]
    for shift in range(4):
        for n in range(COUNT):
            options = [WORDS[n], "granite"] if n % 3 == 0 else four_options(n)
            if shift >= len(options):
                continue
            rotated = [options[(place + shift) % len(options)] for place in range(len(options))]
            right = "ABCD"[rotated.index(WORDS[n])]
            image = str(n) if shift else base64.b64encode(encoded_image(n)).decode()
            fields = [str(n + shift * 1_000_000), f"Which is the {WORDS[n]}?"]
            fields += ["Mind the colour." if n % 2 else "", *rotated, *[""] * (4 - len(rotated))]
            fields += [] if is_hidden else [right]
            category = ("attribute", "relation")[n % 2]
            lines.append("\t".join([*fields, category, "perception", image, "dev"]))
    path = folder / "MMBench_DEV_EN.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return {"data": str(path)}


def seed(folder: Path) -> Files:
    """15 questions on images, 5 on videos."""
    rows = [
        {
            "question_id": str(n),
            "question_type_id": 1 if n < 15 else 10,
            "question": f"Which is the {WORDS[n]}?",
            "data_type": "image" if n < 15 else "video",
            "data_id": f"{n}_data",
            **dict(
                zip(("choice_a", "choice_b", "choice_c", "choice_d"), four_options(n), strict=True)
            ),
            "answer": "ABCD"[n % 4],
        }
        for n in range(COUNT)
    ]
    kinds = {"Scene Understanding": 1, "Action Recognition": 10}
    names = [f"{n}_data" if n < 15 else f"{n}.png" for n in range(COUNT)]
    return {
        "questions": write_json(
            folder / "SEED-Bench.json", {"questions": rows, "question_type": kinds}
        ),
        "images": write_images(folder / "images", names),
    }


POPE_SIZES = {"random": 8, "popular": 6, "adversarial": 6}


def pope(folder: Path) -> Files:
    """Yes and no in turn."""
    paths = {
        split: write_lines(
            folder / f"coco_pope_{split}.json",
            [
                {
                    "question_id": n + 1,
                    "image": f"{n // 2}.jpg",
                    "text": f"Is there a {WORDS[n]} in the image?",
                    "label": ("yes", "no")[n % 2],
                }
                for n in range(size)
            ],
        )
        for split, size in POPE_SIZES.items()
    }
    return {**paths, "images": write_images(folder / "val2014", [f"{n}.jpg" for n in range(4)])}


def mme(folder: Path, categories: tuple[str, str] = ("existence", "posters")) -> Files:
    """Two categories of 5 images with 2 questions each; the second one in its other layout."""
    root = folder / "MME"
    for category, (texts, images) in zip(
        categories, (("", ""), ("questions_answers_YN", "images")), strict=True
    ):
        for n in range(5):
            path = root / category / texts / f"{n:03d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"Is it a {WORDS[n]}?\tYes\nIs it a {WORDS[n + 5]}?\tNo\n")
            write_images(root / category / images, [f"{n:03d}.jpg"], n)
    return {"data": str(root)}


def mathvista(folder: Path) -> Files:
    """Four kinds in turn: an option, an integer, a float of 2 digits, a list."""

    def row(number: int) -> dict[str, Any]:
        kind = number % 4
        return {
            "question": f"How much is {WORDS[number]}?",
            "image": f"images/{number}.jpg",
            "choices": four_options(number) if kind == 0 else None,
            "unit": "cm" if kind == 2 else None,
            "precision": 2.0 if kind == 2 else None,
            "answer": (WORDS[number], str(number), f"{number}.25", f"[{number}, 7]")[kind],
            "question_type": "multi_choice" if kind == 0 else "free_form",
            "answer_type": ("text", "integer", "float", "list")[kind],
            "metadata": {"task": "figure question answering"},
        }

    rows = {str(n + 1): row(n) for n in range(COUNT)}
    return {
        "annotations": write_json(folder / "testmini.json", rows),
        "images": write_images(folder / "images", [f"{n}.jpg" for n in range(COUNT)]),
    }


def llava_w(folder: Path) -> Files:
    questions = [
        {
            "question_id": n,
            "image": f"{n // 2:03d}.jpg",
            "text": f"What of {WORDS[n]}?",
            "category": ("conv", "detail", "complex")[n % 3],
        }
        for n in range(COUNT)
    ]
    context = [
        {"id": f"{n:03d}", "image": f"{n:03d}.jpg", "caption": f"Scene of {WORDS[n]}."}
        for n in range(COUNT // 2)
    ]
    references = [
        {"question_id": n, "text": f"The right answer on {WORDS[n]}."} for n in range(COUNT)
    ]
    return {
        "questions": write_lines(folder / "questions.jsonl", questions),
        "context": write_lines(folder / "context.jsonl", context),
        "references": write_lines(folder / "answers_gpt4.jsonl", references),
        "images": write_images(folder / "images", [row["image"] for row in context]),
    }


def mm_vet(folder: Path) -> Files:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": f"What is the {WORDS[n]}?",
            "answer": f"{WORDS[n]}<AND>granite<OR>{WORDS[n]}",
            "capability": [["ocr"], ["rec", "math"]][n % 2],
        }
        for n in range(COUNT)
    }
    return {
        "annotations": write_json(folder / "mm-vet.json", rows),
        "images": write_images(folder / "images", [row["imagename"] for row in rows.values()]),
    }


WRITERS: dict[str, Callable[[Path], Files]] = {
    "coco": karpathy,
    "nocaps": coco_captions,
    "textcaps": textcaps,
    "vqav2": vqa,
    "okvqa": vqa,
    "vqav2_sft": vqa,
    "vqav2_test": vqa_test,
    "textvqa": textvqa,
    "textvqa_sft": textvqa,
    "textvqa_test": lambda folder: textvqa(folder, is_hidden=True),
    "vizwiz": vizwiz,
    "vizwiz_test": lambda folder: vizwiz(folder, is_hidden=True),
    "gqa": gqa,
    "docvqa": docvqa,
    "chartqa": chartqa,
    "scienceqa_img": scienceqa,
    "mmmu_val": mmmu,
    "mmmu_test": lambda folder: mmmu(folder, is_hidden=True),
    "mathvista": mathvista,
    "mme_perception": mme,
    "mme_cognition": lambda folder: mme(folder, ("code_reasoning", "text_translation")),
    "mmbench": mmbench,
    "mmbench_test": lambda folder: mmbench_passes(folder, is_hidden=True),
    "seed_all": seed,
    "seed_image": seed,
    "pope": pope,
    "llava_w": llava_w,
    "mm_vet": mm_vet,
}
"""The writer of each task file's data."""
