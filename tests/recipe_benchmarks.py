"""Writes the files of benchmarks where tasks name them, in their official layouts, small.

Every item has a picture that looks like no other and a text of fourteen words that no other has, so
that whatever training data repeats of it can be told: `picture(name, n)` and `sentence(name, n)`,
where `name` is the task's, with `-shots` behind it for the examples that it shows.
"""

from __future__ import annotations

import base64
import io
import json
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mm1_pipeline.config.evaluation import EvaluateConfig, TaskConfig
from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.config.text_tasks import TextFormat, TextTaskConfig

COUNT = 10
"""Items a task, so that a query can be shown eight others."""
_LETTERS = "bcdfghklmnprstvw"


def picture(name: str, number: int, size: tuple[int, int] = (96, 72)) -> bytes:
    """A PNG of coarse and fine shapes."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {number}".encode()))
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).resize(size)
        for shape in ((5, 6), (36, 48))
    )
    buffer = io.BytesIO()
    Image.blend(coarse, fine, 0.25).save(buffer, "PNG")
    return buffer.getvalue()


def sentence(name: str, number: int, length: int = 14) -> str:
    """Words that no other item has."""
    rng = random.Random(f"{name} {number}")
    words = (
        "".join(rng.choice(_LETTERS) + rng.choice("aeiou") for _ in "xyz") for _ in "x" * length
    )
    return " ".join(words)


class Writer:
    """Writes one task's items, or the examples that it shows.

    Args:
        name: Of the task, with `-shots` behind it for examples.
        files: Places by role.
        task: For the names of images and the subset.
        subset: Of the items.
    """

    def __init__(self, name: str, files: Mapping[str, str], subset: str, image_name: str) -> None:
        self.name, self.files, self.subset, self.image_name = name, files, subset, image_name

    def text(self, number: int) -> str:
        return sentence(self.name, number)

    def put(self, role: str, content: Any) -> None:
        path = Path(self.files[role])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    def lines(self, role: str, rows: list[Any]) -> None:
        self.put(role, "".join(json.dumps(row) + "\n" for row in rows))

    def image(self, file: str, number: int, role: str = "images") -> str:
        path = Path(self.files[role]) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(self.name, number))
        return file

    def number(self, number: int) -> int:
        """An image's number, of which no other task has a picture."""
        return zlib.crc32(self.name.encode()) % 10**6 * 10 + number

    def karpathy(self) -> None:
        """Both splits stand in one file."""
        rows = []
        for split in ("test", "train"):
            name = self.name.removesuffix("-shots") + ("-shots" if split == "train" else "")
            part = Writer(name, self.files, "", "")
            rows += [
                {
                    "filepath": "val2014",
                    "filename": part.image(f"val2014/{name}_{n}.jpg", n).partition("/")[2],
                    "cocoid": part.number(n),
                    "imgid": part.number(n),
                    "split": split,
                    "sentences": [{"raw": part.text(n)}],
                }
                for n in range(COUNT)
            ]
        self.put("annotations", {"dataset": "coco", "images": rows})

    def coco_captions(self) -> None:
        images = [
            {"id": n, "file_name": self.image(f"{self.name}{n}.jpg", n)} for n in range(COUNT)
        ]
        texts = [{"id": n, "image_id": n, "caption": self.text(n)} for n in range(COUNT)]
        self.put("annotations", {"images": images, "annotations": texts})

    def textcaps(self) -> None:
        rows = []
        for n in range(COUNT):
            self.image(f"{self.name}{n}.jpg", n)
            text = self.text(n)
            row = {"image_id": f"{self.name}{n}", "caption_str": text, "reference_strs": [text]}
            rows.append(row)
        self.put("annotations", {"data": rows})

    def vqa(self) -> None:
        numbers = [self.number(n) for n in range(COUNT)]
        for n, number in enumerate(numbers):
            self.image(self.image_name.format(id=number), n)
        questions = [
            {"question_id": number, "image_id": number, "question": self.text(n)}
            for n, number in enumerate(numbers)
        ]
        answers = [
            {"question_id": n, "image_id": n, "answers": [{"answer": "yes"}] * 10} for n in numbers
        ]
        self.put("questions", {"questions": questions})
        self.put("annotations", {"annotations": answers})

    def textvqa(self) -> None:
        rows = []
        for n in range(COUNT):
            self.image(f"{self.name}{n}.jpg", n)
            row = {"question_id": n, "image_id": f"{self.name}{n}", "question": self.text(n)}
            rows.append({**row, "answers": ["yes"] * 10})
        self.put("annotations", {"data": rows})

    def vizwiz(self) -> None:
        rows = [
            {
                "image": self.image(f"VizWiz_{n:08d}.jpg", n),
                "question": self.text(n),
                "answers": [{"answer": "yes"}] * 10,
            }
            for n in range(COUNT)
        ]
        self.put("annotations", rows)

    def gqa(self) -> None:
        rows = {}
        for n in range(COUNT):
            self.image(f"{self.name}{n}.jpg", n)
            rows[f"{n:08d}"] = {
                "question": self.text(n),
                "imageId": f"{self.name}{n}",
                "answer": "yes",
            }
        self.put("questions", rows)

    def scienceqa(self) -> None:
        problems = {
            str(n): {
                "question": self.text(n),
                "choices": ["left", "right"],
                "answer": 0,
                "hint": "",
                "image": self.image(f"test/{n}/image.png", n).rpartition("/")[2],
                "split": "test",
            }
            for n in range(COUNT)
        }
        self.put("problems", problems)
        self.put("splits", {"train": [], "test": [*problems]})

    def mmmu(self) -> None:
        rows = [
            {
                "id": f"{self.subset}_Art_{n}",
                "question": f"<image 1> {self.text(n)}",
                "options": "['left', 'right']",
                "answer": "A",
                "question_type": "multiple-choice",
                "image_1": {"bytes": picture(self.name, n), "path": "1.png"},
            }
            for n in range(COUNT)
        ]
        folder = Path(self.files["data"]) / "Art"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.subset}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / name)

    def mathvista(self) -> None:
        rows = {
            str(n): {
                "question": self.text(n),
                "image": f"images/{self.image(f'{n}.jpg', n)}",
                "choices": None,
                "unit": None,
                "precision": None,
                "answer": str(n),
                "question_type": "free_form",
                "answer_type": "integer",
                "metadata": {"task": "figure question answering"},
            }
            for n in range(COUNT)
        }
        self.put("annotations", rows)

    def mme(self) -> None:
        category = {"perception": "existence", "cognition": "code_reasoning"}[self.subset]
        for n in range(COUNT):
            self.image(f"{category}/{n:03d}.jpg", n, "data")
            text = f"{self.text(n)}?\tYes\nIs it?\tNo\n"
            (Path(self.files["data"]) / category / f"{n:03d}.txt").write_text(text)

    def mmbench(self) -> None:
        rows = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
        for shift in range(2):
            for n in range(COUNT):
                image = str(n) if shift else base64.b64encode(picture(self.name, n)).decode()
                options = ["left", "right"][:: -1 if shift else 1]
                fields = [n + shift * 1_000_000, self.text(n), "", *options, "", "", "AB"[shift]]
                rows.append("\t".join(map(str, [*fields, "relation", image])))
        self.put("data", "\n".join(rows) + "\n")

    def seed(self) -> None:
        """An image a question, and one frame of a video."""
        rows = [
            {
                "question_id": f"{n}",
                "question_type_id": 1,
                "question": self.text(n),
                "data_type": "video" if n == COUNT - 1 else "image",
                "data_id": f"{n}_data",
                **{f"choice_{letter}": letter for letter in "abcd"},
                "answer": "A",
            }
            for n in range(COUNT)
        ]
        for n, row in enumerate(rows):
            self.image(f"{n}.png" if row["data_type"] == "video" else f"{n}_data", n)
        self.put("questions", {"questions": rows, "question_type": {"Scene Understanding": 1}})

    def pope(self) -> None:
        for place, split in enumerate(("random", "popular", "adversarial")):
            rows = [
                {
                    "question_id": 1 + n,
                    "image": self.image(f"COCO_val2014_{self.number(n):012d}.jpg", n),
                    "text": f"Is there a {sentence(self.name, place, 9)} in the image?",
                    "label": ("yes", "no")[n % 2],
                }
                for n in range(COUNT)
            ]
            self.lines(split, rows)

    def llava_w(self) -> None:
        images = [self.image(f"{n:03d}.jpg", n) for n in range(COUNT)]
        self.lines("questions", [
            {"question_id": n, "image": images[n], "text": self.text(n), "category": "conv"}
            for n in range(COUNT)
        ])  # fmt: skip
        self.lines("context", [{"image": image, "caption": "A scene."} for image in images])
        self.lines("references", [{"question_id": n, "text": "So it is."} for n in range(COUNT)])

    def mm_vet(self) -> None:
        rows = {
            f"v1_{n}": {
                "imagename": self.image(f"v1_{n}.png", n),
                "question": self.text(n),
                "answer": "left<OR>right",
                "capability": ["ocr"],
            }
            for n in range(COUNT)
        }
        self.put("annotations", rows)

    def text_rows(self, kind: TextFormat) -> None:
        """A text benchmark."""
        options = ["left", "right", "above", "below"]
        row: dict[TextFormat, Callable[[str, int], Any]] = {
            TextFormat.ARC: lambda text, n: {
                "id": f"q{n}",
                "question": {
                    "stem": text,
                    "choices": [
                        {"label": a, "text": b} for a, b in zip("ABCD", options, strict=True)
                    ],
                },
                "answerKey": "A",
            },
            TextFormat.PIQA: lambda text, n: {"goal": text, "sol1": "left", "sol2": "right"},
            TextFormat.LAMBADA: lambda text, n: {"text": text},
            TextFormat.WINOGRANDE: lambda text, n: {
                "qID": f"q{n}",
                "sentence": f"{text} _ went.",
                "option1": "left",
                "option2": "right",
                "answer": "1",
            },
            TextFormat.HELLASWAG: lambda text, n: {
                "activity_label": "Sailing",
                "ctx_a": text,
                "ctx_b": "",
                "endings": options,
                "label": 0,
            },
            TextFormat.SCIQ: lambda text, n: {
                "question": text,
                "support": "",
                "correct_answer": "left",
                **{f"distractor{k}": options[k] for k in (1, 2, 3)},
            },
            TextFormat.TRIVIAQA: lambda text, n: {
                "QuestionId": f"q{n}",
                "Question": text,
                "Answer": {"Aliases": ["left"]},
            },
            TextFormat.WEBQS: lambda text, n: {
                "utterance": text,
                "targetValue": '(list (description "left"))',
            },
        }
        rows = [row[kind](self.text(n), n) for n in range(COUNT)]
        match kind:
            case TextFormat.SCIQ | TextFormat.WEBQS:
                self.put("questions", rows)
            case TextFormat.TRIVIAQA:
                self.put("questions", {"Data": rows})
            case _:
                self.lines("questions", rows)
        if kind is TextFormat.PIQA:
            self.put("labels", "0\n" * COUNT)


def write_task(name: str, task: TaskConfig | TextTaskConfig) -> None:
    """Writes the files of a task, and those that its shots come from."""
    for suffix, files in (("", task.files), ("-shots", task.shot_files)):
        if files is None:
            continue
        if isinstance(task, TextTaskConfig):
            Writer(name + suffix, files, "", "").text_rows(task.format)
            continue
        assert task.format is not None
        image_name = task.image_name if not suffix else task.shot_image_name or task.image_name
        writer = Writer(name + suffix, files, task.subset, image_name)
        if not (suffix and task.format is TaskFormat.KARPATHY):
            getattr(writer, task.format.value)()


def write_benchmarks(config: EvaluateConfig) -> None:
    """Writes the files of every task; where two tasks name the same, the first one's stay."""
    written: list[Any] = []
    for name, task in [*config.tasks.items(), *config.text_tasks.items()]:
        # Both parts of MME lie in one folder; SEED-Bench's tasks ask one file.
        part = task.subset if task.format is TaskFormat.MME else ""
        if task.files is not None and (task.files, part) not in written:
            write_task(name, task)
            written.append((task.files, part))
